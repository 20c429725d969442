"""Checksums of weights: what a hostile change must not slip through."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from opdf_compile.training.hoisted import checksums as module
from opdf_compile.training.hoisted.checksums import checksum, checksums, differing

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(tensor: Tensor) -> Tensor:
    """A view of the entries as integers of their size."""
    return tensor.view(INTEGERS[tensor.dtype.itemsize])


def same(left: Tensor, right: Tensor) -> bool:
    return torch.equal(checksum(left), checksum(right))


def weight(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 3, 1024, 2051, 4097])
def test_every_single_bit_shows(dtype: torch.dtype, size: int) -> None:
    value = weight(size, dtype=dtype)
    before = checksum(value)
    for place in {0, size // 2, size - 1}:
        for bit in range(8 * dtype.itemsize):
            # The top bit as a negative number: 1 << 63 is no int64.
            top = bit == 8 * dtype.itemsize - 1
            flip = -(1 << bit) if top else 1 << bit
            bits(value)[place] ^= flip
            assert (checksum(value) != before).all(), f"bit {bit} of entry {place}"
            bits(value)[place] ^= flip
    assert torch.equal(checksum(value), before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2,), (5, 3), (64, 64), (129, 255), (8, 4, 3, 3)])
def test_negation_shows(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Flipped top bits cancel in sums of 64-bit words: 2^63 + 2^63 = 0."""
    value = weight(*shape, dtype=dtype)
    assert not same(value, -value)
    half = value.clone()
    half.view(-1)[: value.numel() // 2 * 2 : 2] *= -1
    assert not same(value, half)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [2, 3, 16, 100, 512, 700])
def test_an_identity_with_two_rows_or_columns_swapped_shows(dtype: torch.dtype, size: int) -> None:
    """Sums over rows and over columns of the bits stay what they were."""
    value = torch.eye(size, dtype=dtype)
    for one, other in [(0, 1), (0, size - 1), (size // 2, size - 1)]:
        if one == other:
            continue
        order = list(range(size))
        order[one], order[other] = order[other], order[one]
        assert not same(value, value[order])


@pytest.mark.parametrize("shape", [(2, 2), (6, 10), (256, 256), (300, 1024), (70, 4096)])
def test_what_changes_places_shows(shape: tuple[int, int]) -> None:
    value = weight(*shape)
    rows, columns = shape
    changes = {
        "halves of the rows": torch.cat([value[rows // 2 :], value[: rows // 2]]),
        "halves of the columns": torch.cat(
            [value[:, columns // 2 :], value[:, : columns // 2]], dim=1
        ),
        "rows reversed": value.flip(0),
        "columns reversed": value.flip(1),
        "rolled": value.roll(1, 0),
        "transposed": value.mT.reshape(shape),
    }
    for what, changed in changes.items():
        assert not same(value, changed), what


@given(st.data())
def test_two_entries_that_change_places_show(data: st.DataObject) -> None:
    size = data.draw(st.integers(2, 5000))
    first = data.draw(st.integers(0, size - 1))
    second = data.draw(st.integers(0, size - 1).filter(lambda place: place != first))
    dtype = data.draw(st.sampled_from(DTYPES))
    value = weight(size, dtype=dtype)
    if data.draw(st.booleans()):
        value[second] = -value[first]
    changed = value.clone()
    changed[first], changed[second] = value[second], value[first]
    assert same(value, changed) == torch.equal(bits(value), bits(changed))


@given(st.data())
def test_any_few_changed_entries_show(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 3000))
    value = weight(size)
    changed = value.clone()
    words = st.integers(-(2**31), 2**31 - 1)
    places = data.draw(st.lists(st.integers(0, size - 1), max_size=6, unique=True))
    for place in places:
        bits(changed)[place] = data.draw(words)
    assert same(value, changed) == torch.equal(bits(value), bits(changed))


def test_random_pairs_do_not_collide() -> None:
    """2 000 small weights whose entries are -1, 0 or 1: structure, few bits, many of them."""
    generator = torch.Generator().manual_seed(0)
    seen: dict[tuple[int, int], Tensor] = {}
    for _ in range(2_000):
        value = torch.randint(-1, 2, (3, 4), generator=generator).float()
        value += 0.0  # One zero only: -0.0 has other bits.
        key = tuple(checksum(value).tolist())
        assert torch.equal(seen.setdefault(key, value), value)


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -0.0, 1e-45])
def test_unusual_values_have_bits_too(odd: float) -> None:
    value = torch.zeros(10)
    changed = value.clone()
    changed[3] = odd
    assert not same(value, changed)
    assert same(changed, changed.clone())


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_layout_in_memory_does_not_matter(dtype: torch.dtype) -> None:
    value = weight(6, 4, 5, 3, dtype=dtype)
    wanted = checksum(value)
    assert torch.equal(checksum(value.contiguous(memory_format=torch.channels_last)), wanted)
    assert torch.equal(checksum(value.mT.contiguous().mT), wanted)
    apart = torch.zeros(12, 4, 5, 3, dtype=dtype)
    apart[::2] = value
    assert torch.equal(checksum(apart[::2]), wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [1, 2, 3, 5, 7])
def test_a_view_that_starts_anywhere_has_the_same_checksum(dtype: torch.dtype, offset: int) -> None:
    value = weight(2049, dtype=dtype)
    flat = torch.zeros(2049 + offset, dtype=dtype)
    flat[offset:] = value
    assert torch.equal(checksum(flat[offset:]), checksum(value))


def test_pieces_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    value = weight(300, 1025)
    wanted = checksum(value)
    for rows in (1, 7, 4096):
        monkeypatch.setattr(module, "_ROWS", {"cpu": rows})
        assert torch.equal(checksum(value), wanted)


@pytest.mark.parametrize("size", [2100, 16 * 1024, 150 * 1024 + 7], ids=["small", "rows", "rest"])
def test_it_is_an_integer_sum_that_saved_states_can_rely_on(size: int) -> None:
    """Written out with python integers; a change of keys would orphan every saved checksum.

    Small tensors, whole rows and what is left of them are summed in ways of their own.
    """

    def key(place: int, stream: int) -> int:
        mask = (1 << 64) - 1
        state = (place * 0x9E3779B97F4A7C15 + (stream << 61)) & mask
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        return (state ^ (state >> 31)) | 1

    value = weight(size)
    words = bits(value).tolist()
    columns = [key(place + 1, 0) for place in range(1024)]
    wanted = []
    for stream in (1, 2):
        rows = [key(place + 1, stream) for place in range(size // 1024 + 1)]
        total = sum(
            rows[place // 1024] * columns[place % 1024] * word for place, word in enumerate(words)
        ) % (1 << 64)
        wanted.append(total - (1 << 64) if total >= 1 << 63 else total)
    assert checksum(value).tolist() == wanted
    assert len({column % 2**32 for column in columns}) == 1024


def test_an_empty_weight_and_one_that_needs_a_gradient() -> None:
    assert checksum(torch.zeros(0, 3)).tolist() == [0, 0]
    value = torch.nn.Parameter(weight(3, 3))
    assert not checksum(value).requires_grad
    assert same(value, value.detach())


def test_differing_says_which() -> None:
    values = [weight(4, 4), weight(5, 5), weight(6, 6)]
    wanted = [checksum(value) for value in values]
    values[1][0, 0] += 1
    assert differing([checksum(value) for value in values], wanted) == [False, True, False]
    assert differing([], []) == []
    flipped = [value.flip(0) for value in wanted]
    assert differing(wanted, flipped) == [True, True, True]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [3, 1024, 5_000_001])
def test_a_cuda_device_gives_the_same_sums(dtype: torch.dtype, size: int) -> None:
    value = weight(size, dtype=dtype)
    assert torch.equal(checksum(value.cuda()).cpu(), checksum(value))


def test_many_at_once_have_the_checksums_of_each() -> None:
    """Tails, whole pieces and tensors of several pieces share the buffer in any order."""
    sizes = [1, 1024, 1025, 130 * 1024, 7, 0, 200 * 1024 + 3, 128 * 1024, 2048, 5, 40 * 1024 + 1]
    values = [weight(size, dtype=DTYPES[place % 4]) for place, size in enumerate(sizes)]
    for order in (values, values[::-1], values[3:] + values[:3]):
        found = checksums(iter(order))
        assert all(torch.equal(one, checksum(v)) for one, v in zip(found, order, strict=True))
        assert len({tuple(one.tolist()) for one in found}) == len(order)
    assert checksums([]) == []


def test_a_large_tensor_is_let_go_before_the_next() -> None:
    """A sharded weight is whole for as long as it is summed."""
    alive: list[weakref.ref[Tensor]] = []

    def gathered() -> Iterator[Tensor]:
        for _ in range(3):
            assert all(ref() is None for ref in alive)
            value = weight(256, 256)
            alive.append(weakref.ref(value))
            yield value
            del value

    checksums(gathered())
    assert len(alive) == 3
