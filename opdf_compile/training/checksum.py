"""Whether a weight still holds what was written to it: exact checksums of its bits.

Autograd's version counter would not do: it moves when an EMA is swapped in and out again, and does
not move when somebody writes through ``.data``. With w_rc the weight's bits as 64-bit integers in
rows of 256,

    h_1 = sum_r (2 r + 1) sum_c w_rc        h_2 = sum_c (2 c + 1) sum_r w_rc        (mod 2^64)

so a change of one entry always shows (odd factors are invertible), and so do entries that change
places. Integer sums do not depend on the order of summation: the same bits give the same sums on
every device. It costs two passes over the weight, no copy, and no synchronisation until compared.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_WIDTH = 256


def checksum(tensor: Tensor) -> Tensor:
    """(h_1, h_2) of a tensor's bits, an int64 tensor on its device."""
    with torch.no_grad():
        raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        # A view as 64-bit words needs an aligned start; views into a flat buffer may lack it.
        if raw.storage_offset() % 8:
            raw = raw.clone()
        whole = raw.numel() // (8 * _WIDTH) * (8 * _WIDTH)
        body = raw[:whole].view(torch.int64).reshape(-1, _WIDTH)
        tail = raw[whole:].to(torch.int64)
        rows, columns = body.sum(1), body.sum(0)
        ends = (tail * _odd(tail)).sum()
        return torch.stack(
            [(rows * _odd(rows)).sum() + ends, (columns * _odd(columns)).sum() - ends]
        )


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


def _odd(values: Tensor) -> Tensor:
    return 2 * torch.arange(values.numel(), device=values.device) + 1
