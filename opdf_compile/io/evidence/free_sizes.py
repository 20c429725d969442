"""The sizes that a program leaves free, and inputs in which one of them is another.

Axes of one letter are one size, and so are letters that the model ties to each other (it adds a
picture to its own transpose); a size that follows from another (2*s) moves with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.export import ExportedProgram

from opdf_compile.graph import AxisNames, CallArguments, input_shapes, is_free
from opdf_compile.io.evidence.drawn_values import Draw
from opdf_compile.io.evidence.id_ranges import id_ranges

InputAxis = tuple[str, int]
# A small batch shows what a large one would, and 1 is where broadcasting hides a mistake.
_BATCHES = ((3, 4, 5), (1, 6, 8))
_SMALL_BATCH = 2


@dataclass(frozen=True)
class FreeSize:
    """One size that is free.

    Attributes:
        letters: The names of its axes.
        symbols: torch.export's names for it, with the value that each has in the example.
        places: (input, axis) of every axis that has it or follows from it.
        size: Its value in the example.
        low: Smallest value that the graph was made for.
        high: Largest such value.
    """

    letters: tuple[str, ...]
    symbols: Mapping[Any, int]
    places: tuple[InputAxis, ...]
    size: int
    low: int
    high: int

    @property
    def is_batch(self) -> bool:
        """Whether it is the first axis wherever it stands."""
        return all(axis == 0 for _, axis in self.places)

    def others(self, *, within: bool) -> tuple[list[int], list[int]]:
        """Other sizes to try, two lists: of each the first that the model takes is enough.

        One is near, where a rounding of sizes would show, one far. Models want multiples of their
        stride or window, and some have a largest size: hence the many.

        Args:
            within: Keep to the sizes that the graph was made for; a module knows its own limits.
        """
        s = self.size
        near = (s + 1, s - 1, s + 2, s + 4, s + 8, s + 16, s + 32, s - 32, s + 64)
        far = ((s + 1) // 2, 2 * s, s + (s + 1) // 2, 3 * s, s // 4, 4 * s)
        small = _BATCHES if self.is_batch else ((), ())
        low, high = (self.low, self.high) if within else (1, 2**31)
        kept = [
            list(dict.fromkeys(n for n in sizes if low <= n <= high and n != s))
            for sizes in ((*small[0], *near), (*small[1], *far))
        ]
        return kept[0], [n for n in kept[1] if n not in kept[0][:1]]

    def __str__(self) -> str:
        letters = "/".join(self.letters)
        spread = ", ".join(f"axis {axis} of {name}" for name, axis in self.places)
        return f"{spread} ({letters})"


def free_sizes(
    program: ExportedProgram, example: CallArguments, names: AxisNames
) -> list[FreeSize]:
    """The sizes that the program leaves free, the batch first.

    Args:
        program: Its placeholders carry symbolic shapes.
        example: Gives each size its present value.
        names: Its tensor inputs in order, each with the names of its dynamic axes.
    """
    shapes = dict(zip(names, input_shapes(program), strict=True))
    present = _present(shapes, example)
    found: list[tuple[set[str], set[Any], list[InputAxis]]] = []
    for place, letter, symbols in sorted(_axes(shapes, names), key=lambda row: row[0][1]):
        if not symbols <= present.keys():
            continue  # An expression whose terms no axis shows by itself.
        tied = [group for group in found if letter in group[0] or symbols & group[1]]
        found = [group for group in found if group not in tied]
        letters, together, places = {letter}, set(symbols), [place]
        for group in tied:
            letters |= group[0]
            together |= group[1]
            places = [*group[2], *places]
        found.append((letters, together, places))
    return [_size(program, present, *group) for group in found]


def _axes(
    shapes: Mapping[str, torch.Size], names: AxisNames
) -> Iterator[tuple[InputAxis, str, set[Any]]]:
    for name, shape in shapes.items():
        for axis, size in enumerate(shape):
            if is_free(size):
                expression = size.node.expr  # type: ignore[attr-defined]
                letter = names[name].get(axis, str(expression))
                yield (name, axis), letter, set(expression.free_symbols)


def _present(shapes: Mapping[str, torch.Size], example: CallArguments) -> dict[Any, int]:
    """The value of each symbol that is an axis by itself."""
    tensors = [leaf for leaf in pytree.tree_leaves(example) if isinstance(leaf, Tensor)]
    return {
        size.node.expr: int(now)  # type: ignore[attr-defined]
        for shape, tensor in zip(shapes.values(), tensors, strict=True)
        for size, now in zip(shape, tensor.shape, strict=True)
        if is_free(size) and size.node.expr.is_symbol  # type: ignore[attr-defined]
    }


def _size(
    program: ExportedProgram,
    present: Mapping[Any, int],
    letters: Iterable[str],
    symbols: Iterable[Any],
    places: Iterable[InputAxis],
) -> FreeSize:
    values = {symbol: present[symbol] for symbol in symbols}
    spans = [program.range_constraints[s] for s in values if s in program.range_constraints]
    # torch.export puts 2 where it means "not specialised to 0 or 1".
    lows = [low for span in spans if (low := _bound(span.lower, 1)) > 2]
    highs = [_bound(span.upper, 2**31) for span in spans]
    low, high = max(lows, default=1), min(highs, default=2**31)
    return FreeSize(
        tuple(sorted(letters)), values, tuple(sorted(places)), max(values.values()), low, high
    )


def _bound(bound: Any, infinite: int) -> int:
    try:
        return min(int(bound), 2**31)
    except (TypeError, ValueError, OverflowError, AttributeError):
        return infinite  # torch's own infinity of integers has no int().


class Resized:
    """Makes inputs like the example in other sizes.

    Args:
        program: Its symbols tell which axis follows which size, its operations which integers
            index a table.
        example: The user's inputs.
        names: The tensor inputs in order, with the names of their axes.

    Attributes:
        sizes: What `free_sizes` finds.
    """

    def __init__(self, program: ExportedProgram, example: CallArguments, names: AxisNames) -> None:
        """Find what is free, and what integers may be."""
        self.sizes = free_sizes(program, example, names)
        self._example = example
        self._shapes = dict(zip(names, input_shapes(program), strict=True))
        self._ranges = id_ranges(program, tuple(names))

    def small(self) -> dict[Any, int]:
        """The example's sizes, with a small batch."""
        first = self.sizes[0]
        values = {symbol: size for free in self.sizes for symbol, size in free.symbols.items()}
        if first.is_batch and first.size > _SMALL_BATCH >= first.low:
            values.update(dict.fromkeys(first.symbols, _SMALL_BATCH))
        return values

    def __call__(
        self,
        values: Mapping[Any, int],
        seed: int | Sequence[int] = 0,
        *,
        padded: bool = False,
        whole: bool = True,
    ) -> CallArguments:
        """Inputs in which symbols have other values, drawn like the example's.

        Args:
            values: By symbol; a size that follows from others is the example's.
            seed: Where the random numbers start.
            padded: See `Draw`.
            whole: See `Draw`.
        """
        draw = Draw(np.random.default_rng(seed), self._ranges, padded, whole)
        shapes = iter(self._shapes.items())
        leaves, spec = pytree.tree_flatten(self._example)
        drawn = []
        for leaf in leaves:
            if isinstance(leaf, Tensor):
                name, shape = next(shapes)
                places = zip(shape, leaf.shape, strict=True)
                leaf = draw.like(name, leaf, tuple(_at(size, now, values) for size, now in places))
            drawn.append(leaf)
        args, kwargs = pytree.tree_unflatten(drawn, spec)
        return args, kwargs


def _at(size: int | torch.SymInt, now: int, values: Mapping[Any, int]) -> int:
    if not is_free(size):
        return int(size)
    expression = size.node.expr  # type: ignore[union-attr]
    # Of an expression whose terms no axis shows by itself nothing but the present size is known.
    return int(expression.subs(values)) if expression.free_symbols <= values.keys() else int(now)
