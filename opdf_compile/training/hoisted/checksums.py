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
device. It costs one pass over the weight in pieces that fit a cache (3 ms for a million float32
entries on one core), a copy only of a weight that is not contiguous, and no synchronisation until
compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad

_WIDTH = 1024
# Rows of one piece: on a CPU its 64-bit products, 1 MiB, stay in the cache; elsewhere fewer, larger
# launches are faster.
_ROWS = {"cpu": 128}
_MANY_ROWS = 4096


def checksum(tensor: Tensor) -> Tensor:
    """(h_1, h_2) of a tensor's bits, an int64 tensor on its device."""
    with torch.no_grad():
        raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        # A view as 32-bit words needs an aligned start; views into a flat buffer may lack it.
        if raw.storage_offset() % 4:
            raw = raw.clone()
        row = 4 * _WIDTH
        whole = raw.numel() // row * row
        piece_rows = _ROWS.get(raw.device.type, _MANY_ROWS)
        pieces = list(torch.split(_rows(raw[:whole]), piece_rows))
        if whole < raw.numel():
            pieces.append(_rows(pad(raw[whole:], (0, whole + row - raw.numel()))))
        column_keys = _keys(_WIDTH, 0, raw.device)
        # One buffer for all pieces: memory that is returned and asked for anew costs more than the
        # sums, because the system clears its pages each time.
        rows = max(len(piece) for piece in pieces)
        buffer = torch.empty((rows, _WIDTH), dtype=torch.int64, device=raw.device)
        sums = torch.cat(
            [torch.mul(piece, column_keys, out=buffer[: len(piece)]).sum(1) for piece in pieces]
        )
        return torch.stack([(sums * _keys(len(sums), k, raw.device)).sum() for k in (1, 2)])


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


def _rows(raw: Tensor) -> Tensor:
    return raw.view(torch.int32).view(-1, _WIDTH)


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
