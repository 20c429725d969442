"""Example inputs for the numerics check: the user's own, and seeded ones that resemble it.

One input can hide an error (a zero image, a mask of ones, batch 1), and few rows leave a wide
tolerance, so further ones are drawn (their values: `drawn_values`) until there are enough rows.
Dynamic axes take other sizes, equal ones together.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.utils._pytree as pytree
from torch import Tensor
from torch.export import ExportedProgram

from opdf_compile.graph import AxisNames, Inputs, input_shapes, is_free
from opdf_compile.io.evidence.drawn_values import Draw
from opdf_compile.io.evidence.id_ranges import id_ranges

# Ordinary samples: of the example's own batch, of one, and of shorter length.
ORDINARY = 4
# Independent rows that a check needs: its tolerance shrinks with their number (parity/numerics).
ENOUGH_ROWS = 16
MOST_SAMPLES = 16


@dataclass(frozen=True)
class Axis:
    """A size that the program leaves open.

    Attributes:
        size: Its value in the example.
        low: Smallest allowed value.
        high: Largest allowed value.
    """

    size: int
    low: int
    high: int

    def clamp(self, wanted: int) -> int:
        """The allowed size nearest to the one wanted."""
        return max(self.low, min(self.high, wanted))


def drawn_samples(
    program: ExportedProgram,
    example: Inputs,
    axis_names: AxisNames,
    *,
    seed: int,
    largest_batch: int = ENOUGH_ROWS,
) -> Iterator[list[Inputs]]:
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
    groups = axis_groups(program, axis_names)
    axes = open_axes(program, example, groups)
    ranges = id_ranges(program, tuple(axis_names))
    for index in itertools.count():
        sizes = _sizes(axes, index, largest_batch)
        padded = index % 2 == 0

        def drawn(
            sizes: Mapping[str, int], padded: bool, whole: bool = False, index: int = index
        ) -> Inputs:
            draw = Draw(np.random.default_rng([seed, index]), ranges, padded, whole)
            return _draw(example, groups, sizes, draw)

        yield [
            drawn(sizes, padded),
            drawn(sizes, padded, whole=True),
            drawn({}, padded),
            drawn({}, padded, whole=True),
        ]


def axis_groups(program: ExportedProgram, axis_names: AxisNames) -> dict[str, list[str | None]]:
    """For every axis of every input, the name of the group that shares its size.

    Args:
        program: Its placeholders carry symbolic shapes.
        axis_names: Names of inputs and axes, in the program's order.

    Returns:
        By input, one entry per axis: the caller's name, else torch's symbol, None where fixed.
    """
    groups: dict[str, list[str | None]] = {}
    for (name, axes), shape in zip(axis_names.items(), input_shapes(program), strict=True):
        groups[name] = [
            axes.get(axis, str(size)) if is_free(size) else None for axis, size in enumerate(shape)
        ]
    return groups


def open_axes(
    program: ExportedProgram, example: Inputs, groups: Mapping[str, Sequence[str | None]]
) -> dict[str, Axis]:
    """The groups whose size may be chosen, the batch first.

    Args:
        program: Its range constraints limit the sizes.
        example: Gives each group its present size.
        groups: What `axis_groups` found.
    """
    limits = {str(symbol): span for symbol, span in program.range_constraints.items()}
    tensors = [leaf for leaf in pytree.tree_leaves(example) if isinstance(leaf, Tensor)]
    axes: dict[str, Axis] = {}
    derived: set[str] = set()
    # Sorted by position, so that some first axis comes first: that is the batch.
    places = sorted(
        (axis, number, group)
        for number, entries in enumerate(groups.values())
        for axis, group in enumerate(entries)
        if group is not None
    )
    shapes = input_shapes(program)
    for axis, number, group in places:
        span = limits.get(str(shapes[number][axis]))
        if span is None:
            derived.add(group)  # An expression such as 2*s0: it follows from another axis.
            continue
        # torch.export puts 2 where it means "not specialised to 0 or 1".
        low = 1 if _integer(span.lower, 1) <= 2 else _integer(span.lower, 1)
        high = _integer(span.upper, 2**31)
        known = axes.get(group, Axis(int(tensors[number].shape[axis]), low, high))
        axes[group] = Axis(known.size, max(known.low, low), min(known.high, high))
    return {group: axis for group, axis in axes.items() if group not in derived}


def _integer(bound: Any, infinite: int) -> int:
    try:
        return min(int(bound), 2**31)
    except (TypeError, ValueError, OverflowError, AttributeError):
        return infinite  # torch's own infinity of integers has no int().


def _sizes(axes: Mapping[str, Axis], index: int, largest_batch: int) -> dict[str, int]:
    """Sizes of one sample: the example's batch, 1, and what is missing for enough rows.

    The other axes are shorter in every third sample.
    """
    turn = index % (ORDINARY - 1)
    sizes = {}
    for position, (group, axis) in enumerate(axes.items()):
        missing = max(3, min(ENOUGH_ROWS - 2 * axis.size - 1, largest_batch))
        if position == 0:
            sizes[group] = axis.clamp((axis.size, 1, missing)[turn])
        elif turn == 2:
            sizes[group] = axis.clamp((axis.size + 1) // 2)
    return sizes


def _draw(
    example: Inputs,
    groups: Mapping[str, Sequence[str | None]],
    sizes: Mapping[str, int],
    draw: Draw,
) -> Inputs:
    leaves, spec = pytree.tree_flatten(example)
    order = iter(groups.items())
    drawn: list[Any] = []
    for leaf in leaves:
        if not isinstance(leaf, Tensor):
            drawn.append(leaf)
            continue
        name, entries = next(order)
        places = zip(entries, leaf.shape, strict=True)
        shape = tuple(int(size) if g is None else sizes.get(g, int(size)) for g, size in places)
        drawn.append(draw.like(name, leaf, shape))
    args, kwargs = pytree.tree_unflatten(drawn, spec)
    return args, kwargs
