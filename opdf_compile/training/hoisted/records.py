"""What every weight held when it was last written: its checksum, or the very values.

Values are compared where somebody keeps them anyhow, and on a CPU where all of them together take
little, because a copy and a comparison cost less than checksums begin with. Of all others a
checksum is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from opdf_compile.training.hoisted.checksums import checksums, differing

# Bits are compared, not numbers: 0 and -0 differ, and a NaN is what it is.
_WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


# A program's weights that take this much are copied: twice what checksums need as a buffer.
LITTLE = 2**20


class Records:
    """By name of a weight.

    Args:
        copying: Whether to keep copies of weights that nobody else keeps and a CPU holds.
    """

    def __init__(self, *, copying: bool) -> None:
        """Nothing is known."""
        self._copying = copying
        self._sums: dict[str, Tensor] = {}
        # Of these the checksum is an older one.
        self._values: dict[str, Tensor] = {}
        self._copies: dict[str, Tensor] = {}

    def take(self, weights: Iterable[tuple[str, Tensor]], kept: Mapping[str, Tensor]) -> None:
        """Know weights as they are now.

        Args:
            weights: What this rank holds of each.
            kept: Values that some of them were given, which stay until they are taken anew.
        """
        summed: list[str] = []

        def rest() -> Iterator[Tensor]:
            for key, weight in weights:
                value = kept.get(key)
                if value is None or not _alike(value, weight):
                    value = self._copy(key, weight)
                if value is not None:
                    self._values[key] = value
                    continue
                self._values.pop(key, None)
                summed.append(key)
                yield weight

        found = checksums(rest())
        self._sums.update(zip(summed, found, strict=True))

    def differing(self, held: Iterable[tuple[str, Tensor]]) -> list[bool]:
        """Which weights hold something else; a large one is let go before the next is asked for."""
        answers: dict[str, bool] = {}
        summed: list[str] = []

        def rest() -> Iterator[Tensor]:
            for key, weight in held:
                value = self._values.get(key)
                answers[key] = value is not None and not _same(weight, value)
                if value is None:
                    summed.append(key)
                    yield weight

        found = checksums(rest())
        answers.update(
            zip(summed, differing(found, [self._sums[key] for key in summed]), strict=True)
        )
        return list(answers.values())

    def _copy(self, key: str, weight: Tensor) -> Tensor | None:
        """A copy, where the last one lies if it fits; None where none is to be kept."""
        if not (self._copying and weight.device.type == "cpu"):
            return None
        copy = self._copies.get(key)
        if copy is None or not _alike(copy, weight):
            self._copies[key] = copy = torch.empty_like(weight)
        return copy.copy_(weight)

    def checksums(self) -> dict[str, Tensor]:
        """The checksum of every weight, as it was taken."""
        return self._sums | dict(zip(self._values, checksums(self._values.values()), strict=True))

    def expect(self, sums: Mapping[str, Tensor]) -> None:
        """Know weights by checksums from elsewhere."""
        self._sums.update(sums)
        for key in sums:
            self._values.pop(key, None)


def _alike(value: Tensor, weight: Tensor) -> bool:
    return (value.dtype, value.shape, value.device) == (weight.dtype, weight.shape, weight.device)


def _same(weight: Tensor, value: Tensor) -> bool:
    if (weight.dtype, weight.shape) != (value.dtype, value.shape):
        return False
    pair, size = (weight, value.to(weight.device)), weight.itemsize
    # A word costs the same whatever its size.
    if all(t.is_contiguous() and _even(t.numel(), int(t.storage_offset()), size) for t in pair):
        pair, size = (weight.view(-1), pair[1].view(-1)), 8
    return torch.equal(*(tensor.view(_WORDS[size]) for tensor in pair))


def _even(entries: int, first: int, size: int) -> bool:
    """Whether entries from a first one on are whole words of 8 bytes."""
    return entries * size % 8 == 0 and first * size % 8 == 0
