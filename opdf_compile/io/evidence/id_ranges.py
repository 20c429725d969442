"""Which integers an input may hold, found from the graph that reads it.

An input that indexes a table of V rows takes 0 .. V-1: token ids an embedding's rows, position ids
the position table's, labels the classes of a loss. Each integer input is followed through whatever
keeps its values (views, casts, slices, clamps, a shift or a factor by a number) to every operation
that indexes with it; where one input indexes two tables, the smaller one counts.

An id that the graph compares with (`ids != pad`) has a meaning of its own. It is not drawn at
random: a padding token in the middle, or a second end token, is what no tokenizer makes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from opdf_compile.graph import nested_graphs, short_name

_KEEP = frozenset(
    (
        *("view", "reshape", "_unsafe_view", "unsqueeze", "squeeze", "expand", "permute", "t"),
        *("transpose", "flatten", "slice", "select", "narrow", "clone", "contiguous", "detach"),
        *("alias", "to", "_to_copy", "type_as", "repeat", "repeat_interleave", "split", "chunk"),
        *("roll", "flip", "expand_as", "view_as", "unbind", "lift_fresh_copy", "masked_fill"),
        *("unflatten", "split_with_sizes", "movedim", "squeeze_", "cat", "stack", "getitem"),
    )
)
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_COMPARE = frozenset({"eq", "ne"})
_LOSSES = frozenset({"cross_entropy_loss", "nll_loss", "nll_loss_nd"})
_SHIFTS: Mapping[str, int] = {"add": 1, "sub": -1}


@dataclass(frozen=True)
class IdRange:
    """Values that an integer input may hold.

    Attributes:
        low: The smallest.
        high: The largest.
        special: Values in between that have a meaning of their own.
    """

    low: int
    high: int
    special: frozenset[int] = frozenset()


@dataclass(frozen=True)
class _Value:
    """`factor` x + `shift`, clamped to [low, high], of an input x."""

    source: str
    factor: int = 1
    shift: int = 0
    low: float = -math.inf
    high: float = math.inf

    @property
    def is_clamped(self) -> bool:
        return math.isfinite(self.low) or math.isfinite(self.high)

    def allows(self, low: float, high: float) -> tuple[float, float]:
        """The x whose image lies within the limits; a clamp that keeps to them allows any."""
        # What the clamp cuts off, below or above, can be no wrong index.
        low = max(low, self.low)
        high = min(high, self.high)
        ends = ((low - self.shift) / self.factor, (high - self.shift) / self.factor)
        return math.ceil(min(ends)), math.floor(max(ends))


# A node may hold the values of several inputs (a concatenation), or of one in several ways.
_Values = Mapping[Node, tuple[_Value, ...]]


@dataclass
class _Found:
    low: float = -math.inf
    high: float = math.inf
    special: set[int] = field(default_factory=set)


def id_ranges(program: ExportedProgram, names: Sequence[str]) -> dict[str, IdRange]:
    """The ranges of the integer inputs that index something.

    Args:
        program: The eval program.
        names: Names of its tensor inputs, in order.

    Returns:
        By input name; inputs that index nothing, such as masks, are left out.
    """
    wanted = set(program.graph_signature.user_inputs)
    graph = program.graph_module
    placeholders = [n for n in graph.graph.nodes if n.op == "placeholder" and n.name in wanted]
    tensors = [n for n in placeholders if isinstance(n.meta.get("val"), Tensor)]
    search = _Search()
    values: dict[Node, tuple[_Value, ...]] = {
        node: (_Value(name),)
        for node, name in zip(tensors, names, strict=True)
        if node.meta["val"].dtype in _INTEGERS
    }
    search.follow(graph, values)
    closed = {name: _closed(found) for name, found in search.found.items()}
    return {name: span for name, span in closed.items() if span is not None}


def _closed(found: _Found) -> IdRange | None:
    if not (math.isfinite(found.low) and math.isfinite(found.high) and found.low <= found.high):
        return None
    low, high = int(found.low), int(found.high)
    special = frozenset(value for value in found.special if low <= value <= high)
    # A range of special values only is a range of ordinary ones.
    return IdRange(low, high, special if len(special) < high - low + 1 else frozenset())


class _Search:
    def __init__(self) -> None:
        self.found: dict[str, _Found] = {}

    def follow(self, module: GraphModule, values: dict[Node, tuple[_Value, ...]]) -> None:
        """Walk one graph in order; `values` are the integers known at its start."""
        for node in module.graph.nodes:
            if node.op != "call_function":
                continue
            for nested in nested_graphs(module, node):
                inside = (n for n in nested.module.graph.nodes if n.op == "placeholder")
                given = zip(inside, nested.operands or (), strict=False)
                known = {
                    mine: values[n] for mine, n in given if isinstance(n, Node) and n in values
                }
                self.follow(nested.module, known)
            if getattr(node.target, "namespace", "aten") != "aten":
                continue  # An operator of another library may share a name, and nothing else.
            self._compare(node, values)
            for index, size in _indexed(node):
                for value in values.get(index, ()):
                    self._limit(value, size)
            passed = _passed_on(node, values)
            if passed:
                values[node] = passed

    def _compare(self, node: Node, values: _Values) -> None:
        if short_name(node) not in _COMPARE or not isinstance(node.args[1], int):
            return
        for value in _at(values, node.args[0]):
            if value.factor == 1:
                self._of(value).special.add(node.args[1] - value.shift)

    def _limit(self, value: _Value, size: Any) -> None:
        if not isinstance(size, int):
            return
        low, high = value.allows(0, size - 1)
        found = self._of(value)
        found.low, found.high = max(found.low, low), min(found.high, high)

    def _of(self, value: _Value) -> _Found:
        return self.found.setdefault(value.source, _Found())


def _indexed(node: Node) -> list[tuple[Any, Any]]:
    """The nodes that an operation indexes with, each with the number of rows it indexes."""
    name, args = short_name(node), node.args
    if name in ("embedding", "embedding_bag", "_embedding_bag"):
        return [(args[1], _size(args[0], 0))]
    if name in ("index_select", "gather"):
        return [(args[2], _size(args[0], args[1]))]
    if name in ("scatter", "scatter_add", "index_add", "index_fill"):
        return [(args[2], _size(args[0], args[1]))]
    if name in ("index", "index_put") and isinstance(args[1], list | tuple):
        return [(at, _size(args[0], axis)) for axis, at in enumerate(args[1]) if at is not None]
    if name == "one_hot" and len(args) > 1:
        return [(args[0], args[1] if args[1] != -1 else None)]
    if name in _LOSSES:
        axis = 1 if len(_shape(args[0])) > 1 else 0
        return [(args[1], _size(args[0], axis))]
    return []


def _shape(node: Any) -> Sequence[Any]:
    value = node.meta.get("val") if isinstance(node, Node) else None
    return value.shape if isinstance(value, Tensor) else ()


def _size(node: Any, axis: Any) -> int | None:
    """A size that is a number: an open one bounds nothing that could be drawn."""
    shape = _shape(node)
    if not isinstance(axis, int) or not -len(shape) <= axis < len(shape):
        return None
    return shape[axis] if isinstance(shape[axis], int) else None


def _at(values: _Values, node: Any) -> tuple[_Value, ...]:
    return values.get(node, ()) if isinstance(node, Node) else ()


def _passed_on(node: Node, values: _Values) -> tuple[_Value, ...]:
    """What is known about the result of an operation."""
    name, args = short_name(node), node.args
    if not args:
        return ()
    if name == "where":
        # `where(ids == -100, 0, ids)`: the branch that is an input's.
        return tuple(value for branch in args[1:] for value in _at(values, branch))
    if name in _KEEP:
        parts = args[0] if isinstance(args[0], list | tuple) else args[:1]
        return tuple(value for part in parts for value in _at(values, part))
    return tuple(filter(None, (_computed(value, name, args) for value in _at(values, args[0]))))


def _computed(value: _Value, name: str, args: Sequence[Any]) -> _Value | None:
    """A clamp, or a shift or factor by a number; None where the values become others."""
    if name in ("clamp", "clamp_min", "clamp_max"):
        return _clamped(value, name, args)
    number = args[1] if len(args) > 1 else None
    if value.is_clamped or not isinstance(number, int):
        return None
    if name in _SHIFTS:
        return replace(value, shift=value.shift + _SHIFTS[name] * number)
    if name == "mul" and number > 0:
        return replace(value, factor=value.factor * number, shift=value.shift * number)
    return None


def _clamped(value: _Value, name: str, args: Sequence[Any]) -> _Value | None:
    ends = [a if isinstance(a, int) else None for a in (*args[1:3], None, None)][:2]
    if name == "clamp_max":
        ends = [None, ends[0]]
    low = value.low if ends[0] is None else max(value.low, ends[0])
    high = value.high if ends[1] is None else min(value.high, ends[1])
    return replace(value, low=low, high=high)
