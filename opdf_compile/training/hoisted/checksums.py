"""Whether a weight still holds what was written to it: exact checksums of its bits.

Autograd's version counter would not do: it moves when an EMA is swapped in and out again, and does
not move when somebody writes through ``.data``. With m_rc the weight's bits as 32-bit integers in
rows of 1024, and fixed odd 64-bit keys a, a', b that look random,

    s_r = sum_c b_c m_rc          h_1 = sum_r a_r s_r          h_2 = sum_r a'_r s_r       (mod 2^64)

A change of one entry always shows: odd keys are invertible, and the change is below 2^32. So do two
entries of one row that change places, because the b_c differ modulo 2^32. Any other change, made
without looking at the keys, is missed with a chance of about 2^-33 at most, the case in which only
sign bits differ. Entries of 32 bits and products of keys are both needed: sums of 64-bit words lose
every even number of flipped top bits (-W in float64), and keys that add up over rows and columns
lose two rows of an identity that change places. This is no defence against forgery.

Integer sums do not depend on the order of summation: the same bits give the same sums on every
device. It costs one pass over the weight in pieces that fit a cache (1 to 3 ms for a million
float32 entries on one core), a copy only of a weight that is not contiguous, and no synchronisation
until compared. Small weights share a piece: each costs one copy more.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

_WIDTH = 1024
# Rows of one piece: on a CPU its 64-bit products, 512 KiB, stay in the cache; elsewhere fewer and
# larger launches are faster.
_ROWS = {"cpu": 64}
_MANY_ROWS = 4096
# From so many rows on a tensor is summed where it lies. Smaller ones are copied together, up to so
# many rows at a time: with their products 192 KiB.
_SMALL = 16


def checksum(tensor: Tensor) -> Tensor:
    """(h_1, h_2) of a tensor's bits, an int64 tensor on its device."""
    return checksums([tensor])[0]


def checksums(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The checksum of each, in one go: what is summed for one is summed for all.

    A large tensor is let go before the next one is asked for.
    """
    places: list[tuple[torch.device, int]] = []
    sums: dict[torch.device, _RowSums] = {}
    with torch.no_grad():
        for tensor in tensors:
            device = tensor.device
            if device not in sums:
                sums[device] = _RowSums(device)
            places.append((device, sums[device].add(tensor)))
            del tensor
        found = {device: rows.checksums().unbind(0) for device, rows in sums.items()}
    return [found[device][place] for device, place in places]


class _RowSums:
    """The s_r of the tensors on one device.

    One buffer for all pieces: memory that is returned and asked for anew costs more than the sums,
    because the system clears its pages each time. Small tensors, and what is left of large ones,
    are first copied together: a copy costs less than a product of its own.
    """

    def __init__(self, device: torch.device) -> None:
        self._keys = _keys(_WIDTH, 0, device)
        self._size = _ROWS.get(device.type, _MANY_ROWS)
        self._buffer = torch.empty((0, _WIDTH), dtype=torch.int64, device=device)
        self._filled = 0
        self._sums: list[Tensor] = []
        self._count = 0
        # What the sums are of, in their order.
        self._summed: list[_Rows] = []
        self._small: list[tuple[Tensor, _Rows]] = []
        self._small_rows = 0

    def add(self, tensor: Tensor) -> int:
        """Sum the rows of one tensor; returns its place."""
        place = self._count
        self._count += 1
        size = tensor.numel() * tensor.itemsize
        rows, rest = divmod(size, 4 * _WIDTH)
        if rows >= _SMALL:
            words = tensor.reshape(-1).view(torch.uint8)
            whole = words[: size - rest]
            # A view as 32-bit words needs an aligned start; views into a flat buffer may lack it.
            whole = whole.clone() if whole.storage_offset() % 4 else whole
            self._summed.append(_Rows(place, 0, rows))
            self._multiply(whole.view(torch.int32).view(rows, _WIDTH))
            if rest:
                self._gather(words[size - rest :].clone(), _Rows(place, rows, 1))
        elif size:
            self._gather(tensor, _Rows(place, 0, rows + (rest > 0)))
        return place

    def _gather(self, tensor: Tensor, rows: _Rows) -> None:
        if self._small_rows + rows.many > _SMALL:
            self._spread()
        self._small.append((tensor, rows))
        self._small_rows += rows.many

    def _spread(self) -> None:
        """Copy the small tensors together, each from the start of a row on, and sum their rows."""
        words = self._keys.new_zeros(self._small_rows * _WIDTH, dtype=torch.int32)
        views: dict[torch.dtype, Tensor] = {}
        copies: list[Tensor] = []
        start = 0
        for tensor, rows in self._small:
            dtype = tensor.dtype
            if dtype not in views:
                views[dtype] = words.view(dtype)
            first = start * 4 * _WIDTH // tensor.itemsize
            copies.append(views[dtype].as_strided(tensor.shape, _strides(tensor.shape), first))
            start += rows.many
        torch._foreach_copy_(copies, [tensor for tensor, _rows in self._small])
        self._summed.extend(rows for _tensor, rows in self._small)
        self._small, self._small_rows = [], 0
        self._multiply(words.view(-1, _WIDTH))

    def _multiply(self, rows: Tensor) -> None:
        start, wanted = 0, rows.shape[0]
        while start < wanted:
            room = self._room(wanted - start)
            end = start + room.shape[0]
            torch.mul(rows[start:end], self._keys, out=room)
            start = end

    def _room(self, wanted: int) -> Tensor:
        """Rows of the buffer to fill: as many as wanted, or as there are."""
        if self._filled == self._size:
            self._sum_up()
        end = min(self._filled + wanted, self._size)
        if end > self._buffer.shape[0]:
            # Small tensors need a small buffer; from the second time on it doubles.
            size = min(self._size, 2 * end) if self._filled else end
            grown = self._buffer.new_empty((size, _WIDTH))
            grown[: self._filled] = self._buffer[: self._filled]
            self._buffer = grown
        room = self._buffer[self._filled : end]
        self._filled = end
        return room

    def _sum_up(self) -> None:
        self._sums.append(self._buffer[: self._filled].sum(1))
        self._filled = 0

    def checksums(self) -> Tensor:
        """(h_1, h_2) of every tensor, one row each."""
        if self._small:
            self._spread()
        self._sum_up()
        sums = torch.cat(self._sums)
        owners, keys = _row_keys(tuple(self._summed), sums.device)
        made = sums.new_zeros((2, self._count))
        for total, of_rows in zip(made, keys, strict=True):
            total.index_add_(0, owners, sums * of_rows)
        return made.mT


class _Rows(NamedTuple):
    """So many rows of the tensor at a place, from the first on."""

    place: int
    first: int
    many: int


def differing(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> list[bool]:
    """Which checksums differ; one synchronisation for each device."""
    answers: list[bool] = [False] * len(found)
    places: dict[torch.device, list[int]] = {}
    for place, value in enumerate(found):
        places.setdefault(value.device, []).append(place)
    for device, members in places.items():
        left = torch.stack([found[place] for place in members])
        right = torch.stack([wanted[place].to(device) for place in members])
        for place, differs in zip(members, (left != right).any(1).tolist(), strict=True):
            answers[place] = differs
    return answers


@lru_cache(maxsize=1024)
def _strides(shape: torch.Size) -> tuple[int, ...]:
    """Of a contiguous tensor."""
    return torch.empty(shape, device="meta").stride()


# A step asks for one or two; each is 24 bytes for 4 KiB of weights.
@lru_cache(maxsize=8)
def _row_keys(summed: tuple[_Rows, ...], device: torch.device) -> tuple[Tensor, tuple[Tensor, ...]]:
    """For each row of these: the place of its tensor, and its keys for h_1 and h_2."""
    table = torch.tensor(summed, dtype=torch.int64).reshape(-1, 3)
    many = table[:, 2]
    # A row's own number is its place in the list, less that of its tensor's first one here.
    begin = table[:, 1] - many.cumsum(0) + many
    owners, begins = (column.repeat_interleave(many) for column in (table[:, 0], begin))
    rows = (torch.arange(len(owners)) + begins).to(device)
    longest = max((of.first + of.many for of in summed), default=0)
    keys = (_keys(longest, stream, device)[rows] for stream in (1, 2))
    return owners.to(device), tuple(keys)


@lru_cache(maxsize=256)
def _keys(count: int, stream: int, device: torch.device) -> Tensor:
    """Fixed odd 64-bit integers; streams are unrelated.

    Source: the output function of splitmix64 (Steele, Lea, Flood, OOPSLA 2014), on int64 with its
    silent wrap-around. A change of any constant makes the checksums in saved states meaningless.
    """
    state = torch.arange(1, count + 1, device=device) * -0x61C8864680B583EB + (stream << 61)
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        state = (state ^ _shifted(state, shift)) * factor
    return state ^ _shifted(state, 31) | 1


def _shifted(values: Tensor, by: int) -> Tensor:
    """A logical shift: int64's own keeps the sign."""
    return (values >> by) & ((1 << 64 - by) - 1)
