"""Example inputs for the numerics check: the user's own, and seeded ones that resemble it.

One input can hide an error (a zero image, a mask of ones, batch 1), so further ones are drawn:
floats with the example's mean, spread and range; integers and booleans out of the example's own
values, so that token ids stay in the vocabulary; a mask of ones gets some padding in every other
sample. Dynamic axes take other sizes, equal ones together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.export import ExportedProgram

from opdf_compile.graph.axes import AxisNames, input_shapes, is_free
from opdf_compile.graph.signature import Inputs

# Sizes of the batch axis that the drawn samples go through; None is the example's own.
BATCHES: tuple[int | None, ...] = (None, 1, 3)


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
    program: ExportedProgram, example: Inputs, axis_names: AxisNames, *, count: int, seed: int
) -> Iterator[list[Inputs]]:
    """Yield for each sample after the first the candidates to try, the boldest first.

    A model may reject a size that torch.export allowed, or turn drawn values into NaN; the next
    candidate asks for less.

    Args:
        program: The eval program; its symbols say which axes are open.
        example: The user's inputs.
        axis_names: Every tensor input in order with the names of its axes; equal names share a
            size also where the program has two symbols for it.
        count: How many samples.
        seed: Where the random numbers start.
    """
    groups = axis_groups(program, axis_names)
    axes = open_axes(program, example, groups)
    for index in range(count):
        draw = np.random.default_rng([seed, index])
        sizes = _sizes(axes, index)
        padded = index % 2 == 0
        yield [
            _draw(example, groups, sizes, draw, padded),
            _draw(example, groups, {}, draw, padded),
            example,
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


def _sizes(axes: Mapping[str, Axis], index: int) -> dict[str, int]:
    """Sizes of one sample: the batch by the list above, the others shorter in every third."""
    batch = BATCHES[index % len(BATCHES)]
    sizes = {}
    for position, (group, axis) in enumerate(axes.items()):
        if position == 0:
            sizes[group] = axis.size if batch is None else axis.clamp(batch)
        elif batch == BATCHES[-1]:
            sizes[group] = axis.clamp((axis.size + 1) // 2)
    return sizes


def _draw(
    example: Inputs,
    groups: Mapping[str, Sequence[str | None]],
    sizes: Mapping[str, int],
    draw: np.random.Generator,
    padded: bool,
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
        drawn.append(_like(leaf, shape, draw, "mask" in name.lower(), padded))
    args, kwargs = pytree.tree_unflatten(drawn, spec)
    return args, kwargs


def _like(
    leaf: Tensor,
    shape: tuple[int, ...],
    draw: np.random.Generator,
    is_mask: bool = False,
    padded: bool = False,
) -> Tensor:
    """A tensor of another shape with values such as the example's."""
    values = leaf.detach().cpu()
    if values.dtype.is_complex:
        parts = torch.view_as_real(values)
        return torch.view_as_complex(_like(parts, (*shape, 2), draw)).to(leaf.device)
    if values.numel() == 0:
        return torch.zeros(shape, dtype=leaf.dtype, device=leaf.device)
    if values.dtype.is_floating_point:
        drawn = torch.from_numpy(_floats(values.double().numpy(), shape, draw))
    elif is_mask and _needs_padding(values, len(shape), padded):
        drawn = torch.from_numpy(_prefixes(shape, draw))
    else:
        drawn = torch.from_numpy(draw.choice(values.numpy().reshape(-1), size=shape))
    return drawn.to(dtype=leaf.dtype, device=leaf.device)


def _needs_padding(values: Tensor, rank: int, padded: bool) -> bool:
    """Whether a mask is drawn with padding: always if the example has some, else when asked."""
    ones = values == 1
    mixed = bool(((values == 0) | ones).all()) and bool((values == 0).any()) and bool(ones.any())
    return rank >= 2 and (mixed or (padded and bool(ones.all())))


def _floats(values: Any, shape: tuple[int, ...], draw: np.random.Generator) -> Any:
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return draw.choice(values.reshape(-1), size=shape)
    mean, spread = float(finite.mean()), float(finite.std())
    if spread == 0.0:
        # A constant example says nothing about the range.
        return np.asarray(draw.normal(mean, 1.0, size=shape))
    return np.clip(draw.normal(mean, spread, size=shape), finite.min(), finite.max())


def _prefixes(shape: tuple[int, ...], draw: np.random.Generator) -> Any:
    """Ones followed by padding along the last axis, at least half of it ones."""
    length = shape[-1]
    kept = draw.integers((length + 1) // 2, length + 1, size=(*shape[:-1], 1))
    return (np.arange(length) < kept).astype(np.int64)
