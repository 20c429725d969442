"""Whether a tensor's sizes and strides stay inside the bytes that a file really holds.

A view costs nothing to write down, whatever it would need when somebody copies the tensor; and what
lies past the end of its bytes is foreign memory, where a reader does not look.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from opdf_compile.io.screening.syntax import NotPlain

# Tensors that repeat their bytes (made by `expand`) exist: position ids, masks. They are small.
LARGEST_REPEATED = 1 << 30
_LARGEST_SIZE = 1 << 48


class Extents:
    """Checks views one by one, and counts what they would need beyond the bytes of the file."""

    def __init__(self) -> None:
        self._repeated = 0

    def check(
        self,
        what: str,
        sizes: Sequence[int],
        strides: Sequence[int],
        offset: int,
        *,
        elements: int,
        itemsize: int,
    ) -> None:
        """Accept a view of `elements` items.

        Args:
            what: Its name, for the sentence.
            sizes: In items.
            strides: In items.
            offset: First item.
            elements: How many items the file holds for it.
            itemsize: Bytes of one item.

        Raises:
            NotPlain: It reaches outside, or all views together repeat too many bytes.
        """
        numbers = (*sizes, *strides, offset)
        if len(sizes) != len(strides) or any(type(n) is not int for n in numbers):
            raise NotPlain(f"{what} has malformed sizes or strides")
        if any(not 0 <= n <= _LARGEST_SIZE for n in numbers) or len(sizes) > 64:
            raise NotPlain(f"{what} has absurd sizes, strides or offset")
        if 0 in sizes:
            return
        last = offset + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True))
        if last >= elements:
            raise NotPlain(
                f"{what} reaches item {last} of the {elements} that the file holds for it"
            )
        count = prod(sizes)
        if count > elements:
            self._repeated += count * itemsize
        if self._repeated > LARGEST_REPEATED:
            raise NotPlain(
                f"{what} repeats its bytes: copied, such tensors would need {self._repeated} "
                f"bytes, at most {LARGEST_REPEATED} are read"
            )
