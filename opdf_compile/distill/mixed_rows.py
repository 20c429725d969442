"""Rows of embeddings, mixed where they are looked up, in whatever module or function that is.

    e = l e_i + (1 - l) e_j          e_i: the rows that example i looks up

What to mix is told by where an index comes from, not by its shape: whole numbers that are computed
from an input's are followed through every function (a cast, a shift, places that are counted off a
padding mask). An index that comes from no input (places 0, 1, .., relative places) looks up the
same rows for all examples; those stay, also where there are as many places as examples.

Source: Liang et al. 2020 (MixKD), arXiv 2011.00593.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from opdf_compile.errors import InputError

Columns = Mapping[str, Tensor]
# Where the index of a look-up is: its place among the arguments, and its name.
_EMBEDDINGS = {F.embedding: (0, "input"), torch.embedding: (1, "indices")}
_ROWS_OF_TABLES = {
    Tensor.__getitem__: (1, "index"),
    Tensor.index_select: (2, "index"),
    torch.index_select: (2, "index"),
}
# Of their arguments these read the first alone, of the others the form; `_FORM` reads no number.
_FIRST = {Tensor.type_as, Tensor.expand_as, Tensor.view_as, Tensor.reshape_as, Tensor.to}
_FORM = {
    *(Tensor.new_zeros, Tensor.new_ones, Tensor.new_full, Tensor.new_empty, Tensor.new_tensor),
    *(torch.zeros_like, torch.ones_like, torch.full_like, torch.empty_like),
}


class MixedRows(TorchFunctionMode):
    """A region in which the rows that examples look up are mixed with those of other examples.

    Args:
        partner: j, ``(b,)``.
        share: l, ``(b,)``.
        columns: What goes into the forward, these very tensors, ``(b, ..)``.

    Attributes:
        indices: What looked rows up, in the order of the calls, and the columns that it comes from.

    Raises:
        InputError: In the region, what looks rows up has lost its first axis of examples.
    """

    def __init__(self, partner: Tensor, share: Tensor, columns: Columns) -> None:
        super().__init__()
        self._partner, self._share = partner, share
        self.indices: list[tuple[Tensor, frozenset[str]]] = []
        self._origins: MutableMapping[Tensor, frozenset[str]] = WeakTensorKeyDictionary()
        for name, column in columns.items():
            self._note(column, frozenset({name}))

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the function; mix the rows that it looked up, or note what its result comes from."""
        given = kwargs or {}
        found = func(*args, **given)
        index = _index(func, args, given)
        if index is not None and index in self._origins:
            return self._mixed(found, index)
        if func not in _FORM:
            read = args[:1] if func in _FIRST else (*args, *given.values())
            origins = frozenset(
                name for tensor in _whole(read) for name in self._origins.get(tensor, ())
            )
            self._note(args[0] if func == Tensor.__setitem__ else found, origins)
        return found

    def _note(self, found: Any, origins: frozenset[str]) -> None:
        if not origins:
            return
        for tensor in _whole((found,)):
            self._origins[tensor] = origins | self._origins.get(tensor, frozenset())

    def _mixed(self, found: Tensor, index: Tensor) -> Tensor:
        origins = self._origins[index]
        examples = len(self._partner)
        if not index.ndim or len(index) != examples:
            raise InputError(
                f"rows of an embedding are looked up by {', '.join(sorted(origins))} in the shape "
                f"{tuple(index.shape)}, wanted the {examples} examples as the first axis, so that "
                "each is mixed with its own; look them up before they are flattened or transposed"
            )
        self.indices.append((index, origins))
        share = self._share.to(found.dtype).reshape(-1, *(1,) * (found.ndim - 1))
        return torch.lerp(found[self._partner], found, share.expand_as(found))


def _whole(values: Any) -> Iterator[Tensor]:
    """The tensors of whole numbers (masks too) among values, and in sequences of them."""
    for value in values:
        if isinstance(value, Tensor):
            if not (value.is_floating_point() or value.is_complex()):
                yield value
        elif isinstance(value, tuple | list):
            yield from _whole(value)


def _index(func: Any, args: Any, kwargs: Mapping[str, Any]) -> Tensor | None:
    """What a function looks rows of a table up by; None where it does not."""
    if func in _EMBEDDINGS:
        place, name = _EMBEDDINGS[func]
    elif func in _ROWS_OF_TABLES and args and isinstance(args[0], nn.Parameter):
        place, name = _ROWS_OF_TABLES[func]
        if place == 2 and (args[1] if len(args) > 1 else kwargs["dim"]) != 0:
            return None
    else:
        return None
    index = args[place] if len(args) > place else kwargs[name]
    # A mask of truth values selects rows, it does not look them up.
    looks_up = isinstance(index, Tensor) and index.dtype != torch.bool
    return index if looks_up else None


def looked_up(
    forward: Callable[[Columns], Any], batch: Columns, inputs: tuple[str, ...]
) -> frozenset[str]:
    """The inputs that look up rows of an embedding, seen in a forward.

    A padding mask off which places are counted, and these looked up, stays a mask.

    Args:
        forward: Runs the model on a batch.
        batch: An example of two rows or more.
        inputs: The columns that go into the forward.

    Raises:
        InputError: Rows are looked up by what has lost its axis of examples.
    """
    rows = _telling(batch, inputs)
    few = {name: column[:rows] for name, column in batch.items()}
    same = torch.arange(rows, device=few[inputs[0]].device)
    columns = {name: few[name] for name in inputs}
    with torch.no_grad(), MixedRows(same, torch.ones_like(same), columns) as seen:
        forward(few)
    return frozenset(
        name
        for index, names in seen.indices
        for name in names
        if not is_mask(batch[name]) or _same_numbers(index, few[name])
    )


def is_mask(column: Tensor) -> bool:
    """Whether a column of whole numbers holds 0 and 1 alone."""
    return bool(((column == 0) | (column == 1)).all())


def _same_numbers(index: Tensor, column: Tensor) -> bool:
    return index.shape == column.shape and bool((index == column).all())


def _telling(batch: Columns, inputs: tuple[str, ...]) -> int:
    """A number of rows that no other axis has, so that what lost its examples is seen."""
    sizes = {size for name in inputs for size in batch[name].shape[1:]}
    there = len(batch[inputs[0]])
    return next((rows for rows in range(2, there) if rows not in sizes), there)
