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
until compared. Many weights share the pieces, so that a small one costs two products more.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad

_WIDTH = 1024
# Rows of one piece: on a CPU its 64-bit products, 512 KiB, stay in the cache; elsewhere fewer and
# larger launches are faster.
_ROWS = {"cpu": 64}
_MANY_ROWS = 4096


def checksum(tensor: Tensor) -> Tensor:
    """(h_1, h_2) of a tensor's bits, an int64 tensor on its device."""
    return checksums([tensor])[0]


def checksums(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The checksum of each, in one go: what is summed for one is summed for all.

    Each tensor is let go before the next one is asked for.
    """
    places: list[tuple[torch.device, int]] = []
    sums: dict[torch.device, _RowSums] = {}
    with torch.no_grad():
        for tensor in tensors:
            device = tensor.device
            if device not in sums:
                sums[device] = _RowSums(device)
            places.append((device, sums[device].add(_words(tensor))))
            del tensor
        found = {device: rows.checksums().unbind(0) for device, rows in sums.items()}
    return [found[device][place] for device, place in places]


class _RowSums:
    """The s_r of the tensors on one device: of all whole rows, and then of what is left of each.

    One buffer for all pieces: memory that is returned and asked for anew costs more than the sums,
    because the system clears its pages each time.
    """

    def __init__(self, device: torch.device) -> None:
        self._keys = _keys(_WIDTH, 0, device)
        self._size = _ROWS.get(device.type, _MANY_ROWS)
        first = min(self._size, _ROWS["cpu"])
        self._buffer = torch.empty((first, _WIDTH), dtype=torch.int64, device=device)
        self._filled = 0
        self._sums: list[Tensor] = []
        self._rests: list[Tensor] = []
        self._counts: list[tuple[int, bool]] = []

    def add(self, words: Tensor) -> int:
        """Sum the rows of one tensor; returns its place."""
        rows, rest = divmod(words.numel(), _WIDTH)
        if rest:
            odd = words[rows * _WIDTH :].to(torch.int64)
            self._rests.append(odd.mul_(self._keys[:rest]).sum())
        if rows:
            whole = words[: rows * _WIDTH].view(rows, _WIDTH)
            start = 0
            while start < rows:
                room = self._room(rows - start)
                end = start + room.shape[0]
                torch.mul(whole[start:end], self._keys, out=room)
                start = end
        self._counts.append((rows, rest > 0))
        return len(self._counts) - 1

    def _room(self, wanted: int) -> Tensor:
        """Rows of the buffer to fill: as many as wanted, or as there are."""
        if self._filled == self._size:
            self._sum_up()
        end = min(self._filled + wanted, self._size)
        if end > self._buffer.shape[0]:
            # Small tensors need a small buffer.
            grown = self._buffer.new_empty((min(self._size, 2 * end), _WIDTH))
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
        self._sum_up()
        rests = [torch.stack(self._rests)] if self._rests else []
        sums = torch.cat([*self._sums, *rests])
        owners, keys = _row_keys(tuple(self._counts), sums.device)
        made = sums.new_zeros((2, len(self._counts)))
        for total, of_rows in zip(made, keys, strict=True):
            total.index_add_(0, owners, sums * of_rows)
        return made.mT


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


def _words(tensor: Tensor) -> Tensor:
    """A tensor's bits as 32-bit integers in one row; zeros fill up the last one."""
    flat = tensor.reshape(-1)
    if flat.itemsize % 4 == 0:
        return flat.view(torch.int32)
    raw = flat.view(torch.uint8)
    # A view as 32-bit words needs an aligned start; views into a flat buffer may lack it.
    if raw.storage_offset() % 4 or raw.numel() % 4:
        raw = pad(raw, (0, -raw.numel() % 4))
    return raw.view(torch.int32)


@lru_cache(maxsize=64)
def _row_keys(
    counts: tuple[tuple[int, bool], ...], device: torch.device
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """For each s_r as `_RowSums` has them: whose it is, and its keys for h_1 and h_2.

    `counts` are the whole rows of each tensor, and whether there is another.
    """
    places = [
        *((place, row) for place, (rows, _more) in enumerate(counts) for row in range(rows)),
        *((place, rows) for place, (rows, more) in enumerate(counts) if more),
    ]
    owners, rows_of = torch.tensor(places, dtype=torch.int64).reshape(-1, 2).to(device).unbind(1)
    longest = max((rows + more for rows, more in counts), default=0)
    keys = (_keys(longest, stream, device)[rows_of] for stream in (1, 2))
    return owners.contiguous(), tuple(keys)


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
