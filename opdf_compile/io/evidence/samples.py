"""Example inputs for the numerics check: the user's own, and seeded ones that resemble it.

One input can hide an error (a zero image, a mask of ones, batch 1), and few rows leave a wide
tolerance, so further ones are drawn (their values: `drawn_values`) until there are enough rows.
Dynamic axes take other sizes, equal ones together.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from torch.export import ExportedProgram

from opdf_compile.graph import AxisNames, CallArguments
from opdf_compile.io.evidence.free_sizes import FreeSize, Resized

# Ordinary samples: of the example's own batch, of one, and of shorter length.
ORDINARY = 4
# Independent rows that a check needs: its tolerance shrinks with their number (parity/numerics).
ENOUGH_ROWS = 16
MOST_SAMPLES = 16


def drawn_samples(
    program: ExportedProgram,
    example: CallArguments,
    axis_names: AxisNames,
    *,
    seed: int,
    largest_batch: int = ENOUGH_ROWS,
) -> Iterator[list[CallArguments]]:
    """Yield, without end, the candidates to try for each sample after the first, the boldest first.

    A model may reject a size that torch.export allowed, turn drawn values into NaN, or leave an
    attention query without a key under a drawn mask; the next candidate asks for less.

    Args:
        program: The eval program; its symbols say which axes are open, its operations which
            integers index a table.
        example: The user's inputs.
        axis_names: Every tensor input in order with the names of its axes; equal names share a
            size also where the program has two symbols for it.
        seed: Where the random numbers start.
        largest_batch: The batch that is drawn at most.
    """
    resized = Resized(program, example, axis_names)
    present = {symbol: size for free in resized.sizes for symbol, size in free.symbols.items()}
    for index in itertools.count():
        bold = present | _sizes(resized.sizes, index, largest_batch)
        # Half of the samples have padding where the example's masks are all ones.
        yield [
            resized(sizes, (seed, index), padded=index % 2 == 0, whole=whole)
            for sizes in (bold, present)
            for whole in (False, True)
        ]


def _sizes(free: Sequence[FreeSize], index: int, largest_batch: int) -> dict[Any, int]:
    """Sizes of one sample: the example's batch, 1, and what is missing for enough rows.

    The other axes are shorter in every third sample.
    """
    turn = index % (ORDINARY - 1)
    sizes: dict[Any, int] = {}
    for position, axis in enumerate(free):
        missing = max(3, min(ENOUGH_ROWS - 2 * axis.size - 1, largest_batch))
        batch = position == 0
        wanted = (axis.size, 1, missing)[turn] if batch else (axis.size + 1) // 2
        if batch or turn == 2:
            sizes |= dict.fromkeys(axis.symbols, max(axis.low, min(axis.high, wanted)))
    return sizes
