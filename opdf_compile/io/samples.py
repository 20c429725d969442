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

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
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
    program: ExportedProgram, example: Inputs, names: Sequence[str], *, count: int, seed: int
) -> Iterator[list[Inputs]]:
    """Yield for each sample after the first the candidates to try, the boldest first.

    A model may reject a size that torch.export allowed, or turn drawn values into NaN; the next
    candidate asks for less.

    Args:
        program: The eval program; its symbols say which axes share a size.
        example: The user's inputs.
        names: Names of the tensor inputs, in order.
        count: How many samples.
        seed: Where the random numbers start.
    """
    symbols = open_axes(program, example)
    for index in range(count):
        draw = np.random.default_rng([seed, index])
        sizes = _sizes(symbols, index)
        padded = index % 2 == 0
        yield [
            _draw(program, example, names, sizes, draw, padded),
            _draw(program, example, names, {}, draw, padded),
            example,
        ]


def open_axes(program: ExportedProgram, example: Inputs) -> dict[str, Axis]:
    """The symbols that stand alone on an axis of an input, the batch first.

    Args:
        program: Its placeholders carry symbolic shapes.
        example: Gives each symbol its present size.
    """
    axes: dict[str, Axis] = {}
    tensors = [leaf for leaf in pytree.tree_leaves(example) if isinstance(leaf, Tensor)]
    # Sorted by position, so that some first axis comes first: that is the batch.
    places = sorted(
        (axis, number, str(size))
        for number, shape in enumerate(_symbolic_shapes(program))
        for axis, size in enumerate(shape)
        if isinstance(size, torch.SymInt)
    )
    limits = {str(symbol): span for symbol, span in program.range_constraints.items()}
    for axis, number, symbol in places:
        if symbol not in limits:
            continue  # An expression such as 2*s0: it follows from another axis.
        span = limits[symbol]
        # torch.export puts 2 where it means "not specialised to 0 or 1".
        low = 1 if _integer(span.lower, 1) <= 2 else _integer(span.lower, 1)
        high = _integer(span.upper, 2**31)
        axes.setdefault(symbol, Axis(int(tensors[number].shape[axis]), low, high))
    return axes


def _integer(bound: Any, infinite: int) -> int:
    try:
        return min(int(bound), 2**31)
    except (TypeError, ValueError, OverflowError, AttributeError):
        return infinite  # torch's own infinity of integers has no int().


def _symbolic_shapes(program: ExportedProgram) -> list[Sequence[int | torch.SymInt]]:
    wanted = set(program.graph_signature.user_inputs)
    values = (
        node.meta.get("val")
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in wanted
    )
    return [value.shape for value in values if isinstance(value, Tensor)]


def _sizes(symbols: Mapping[str, Axis], index: int) -> dict[str, int]:
    """Sizes of one sample: the batch by the list above, the others shorter in every third."""
    batch = BATCHES[index % len(BATCHES)]
    sizes = {}
    for position, (symbol, axis) in enumerate(symbols.items()):
        if position == 0:
            sizes[symbol] = axis.size if batch is None else axis.clamp(batch)
        elif batch == BATCHES[-1]:
            sizes[symbol] = axis.clamp((axis.size + 1) // 2)
    return sizes


def _draw(
    program: ExportedProgram,
    example: Inputs,
    names: Sequence[str],
    sizes: Mapping[str, int],
    draw: np.random.Generator,
    padded: bool,
) -> Inputs:
    leaves, spec = pytree.tree_flatten(example)
    shapes = iter(_symbolic_shapes(program))
    order = iter(names)
    drawn: list[Any] = []
    for leaf in leaves:
        if not isinstance(leaf, Tensor):
            drawn.append(leaf)
            continue
        symbolic = zip(leaf.shape, next(shapes), strict=True)
        shape = tuple(sizes.get(str(symbol), int(size)) for size, symbol in symbolic)
        is_mask = "mask" in next(order).lower()
        drawn.append(_like(leaf, shape, draw, is_mask, padded))
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
