"""Numbers that float16 and bfloat16 cannot hold: a mask of -1e9, an epsilon of 1e-12.

torch raises for some of them (``masked_fill``), computes others in float32 and rounds the result to
an infinity (``mask * -1e9``); a file holds the number in the half dtype itself, where 0 times minus
infinity is NaN. So each is brought to the nearest number that the dtype has: ``finfo.min``, as in
code that was written for halves, or the smallest positive number for an epsilon that would be 0.

That this changes nothing is checked, not hoped: the evidence runs the truth with both numbers
(`evaluating`). A mask passes, a factor of 1e6 does not, and is refused with its place.

What stays: numbers of operators that compute in float32 whatever the dtype of their input (the
epsilon of a layer norm), parts of a graph that are float32 themselves, infinities.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from opdf_compile.graph import all_graphs
from opdf_compile.io.dtypes import dtype_name
from opdf_compile.io.evidence.places import node_place, operator_name
from opdf_compile.io.evidence.rebuilt import rebuilt

_HALVES = (torch.float16, torch.bfloat16)
# Their numbers are a length, not values.
_LENGTHS = frozenset({"aten.arange", "aten.range", "aten.linspace", "aten.logspace"})
# Numbers of these become elements although their schema calls them floats.
_ELEMENTS: Mapping[str, tuple[str, ...]] = {
    "aten.pad": ("value",),
    "aten.nan_to_num": ("nan", "posinf", "neginf"),
}
# Where a number is added, or is a lower bound, it keeps something away from 0.
_EPSILONS: Mapping[str, str] = {
    "aten.add": "other",
    "aten.clamp": "min",
    "aten.clamp_min": "min",
}
_TRANSPARENT = frozenset({"aten.lift_fresh_copy", "aten.detach", "aten.alias", "aten.clone"})


@dataclass(frozen=True)
class NumberChange:
    """A number that was brought into the range of a dtype.

    Attributes:
        place: Operator, submodule and line, or the name of a tensor.
        value: What the model has.
        became: What the file has.
        dtype: The dtype.
    """

    place: str
    value: float
    became: float
    dtype: str

    def __str__(self) -> str:
        lacks = "cannot hold" if self.value and abs(self.value) >= 1 else "rounds to 0"
        return f"{self.dtype} {lacks} {self.value:g} of {self.place}: the file has {self.became:g}"


def fit_numbers(program: ExportedProgram) -> tuple[ExportedProgram, tuple[NumberChange, ...]]:
    """A program whose numbers fit its half-precision operators; itself where they do already.

    Args:
        program: It is not changed; the copy reads the same weights.
    """
    graphs = all_graphs(program.graph_module)
    if not any(True for graph in graphs for _ in _edits(graph, program)):
        return program, ()
    tensors = (*program.state_dict.values(), *program.constants.values())
    module = copy.deepcopy(program.graph_module, {id(tensor): tensor for tensor in tensors})
    constants = dict(program.constants)
    changes: list[NumberChange] = []
    for graph in all_graphs(module):
        for edit in list(_edits(graph, program)):
            changes.append(edit.change)
            edit.apply(constants)
        graph.recompile()
    fitted = rebuilt(program, module, module.graph, constants=constants)
    return fitted, tuple(dict.fromkeys(changes))


def narrowed(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor in a half dtype, its finite numbers within the range."""
    if dtype not in _HALVES or not tensor.is_floating_point():
        return tensor.to(dtype)
    limits = torch.finfo(dtype)
    fits = tensor.isinf() | tensor.isnan()
    return torch.where(fits, tensor, tensor.clamp(limits.min, limits.max)).to(dtype)


def too_large(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The tensors with a finite number that a half dtype turns into an infinity."""
    if dtype not in _HALVES:
        return {}
    return {
        name: tensor
        for name, tensor in tensors.items()
        if tensor.is_floating_point()
        and tensor.dtype not in _HALVES
        and bool((tensor.to(dtype).isinf() & ~tensor.isinf()).any())
    }


def changes_of(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> tuple[NumberChange, ...]:
    """What `narrowed` does to tensors of `too_large`."""
    found = []
    for name, tensor in tensors.items():
        finite = tensor.detach()[tensor.isfinite()]
        value = finite[finite.abs().argmax()]
        became = float(narrowed(value, dtype))
        found.append(NumberChange(f"the tensor {name!r}", float(value), became, dtype_name(dtype)))
    return tuple(found)


@dataclass(frozen=True)
class _Edit:
    """One number to replace: an argument of a node, or an element of a lifted constant."""

    node: Node
    argument: int | str
    change: NumberChange
    constant: str = ""

    def apply(self, constants: dict[str, Any]) -> None:
        if self.constant:
            like = constants[self.constant]
            constants[self.constant] = torch.full_like(like, self.change.became)
        elif isinstance(self.argument, str):
            self.node.update_kwarg(self.argument, self.change.became)
        else:
            self.node.update_arg(self.argument, self.change.became)


def _edits(graph: GraphModule, program: ExportedProgram) -> Iterator[_Edit]:
    lifted = program.graph_signature.inputs_to_lifted_tensor_constants
    for node in graph.graph.nodes:
        if node.op == "placeholder" and node.name in lifted:
            yield from _edit_of_constant(node, lifted[node.name], program.constants)
        dtype = _half_of(node)
        if dtype is None or not hasattr(node.target, "_schema"):
            continue
        for argument, name, value in _numbers(node):
            is_epsilon = _EPSILONS.get(operator_name(node).rstrip("_")) == name
            became = _fitted(value, dtype, is_epsilon)
            if became != value:
                change = NumberChange(node_place(node), float(value), became, dtype_name(dtype))
                yield _Edit(node, argument, change)


def _edit_of_constant(node: Node, name: str, constants: Mapping[str, Any]) -> Iterator[_Edit]:
    """A number that the forward made a tensor of: ``torch.tensor(-1e9)``."""
    tensor, dtype = constants.get(name), _read_as(node)
    if dtype is None or not isinstance(tensor, Tensor) or tensor.numel() != 1:
        return
    if not tensor.is_floating_point():
        return
    value = float(tensor)
    became = _fitted(value, dtype, epsilon=False)
    if became != value:
        reader = next(iter(node.users))
        place = f"a constant ({node_place(reader)})"
        yield _Edit(node, 0, NumberChange(place, value, became, dtype_name(dtype)), name)


def _half_of(node: Node) -> torch.dtype | None:
    """The half dtype in which the numbers among a node's arguments are taken, or None."""
    value = node.meta.get("val")
    if node.op != "call_function" or not isinstance(value, Tensor):
        return None
    if value.dtype in _HALVES:
        return value.dtype
    if value.dtype is torch.bool:  # A comparison.
        inputs = [source.meta.get("val") for source in node.all_input_nodes]
        halves = [v.dtype for v in inputs if isinstance(v, Tensor) and v.dtype in _HALVES]
        return halves[0] if halves else None
    # A tensor of one number has no say in the dtype of what it is combined with.
    return _read_as(node) if value.dtype.is_floating_point and value.ndim == 0 else None


def _read_as(node: Node) -> torch.dtype | None:
    """The half dtype of what reads a number, through operators that only pass it on."""
    work, seen = list(node.users), set()
    while work:
        user = work.pop()
        if user in seen:
            continue
        seen.add(user)
        value = user.meta.get("val")
        if operator_name(user).rstrip("_") in _TRANSPARENT:
            work.extend(user.users)
        elif isinstance(value, Tensor) and value.dtype in _HALVES:
            return value.dtype
    return None


def _numbers(node: Node) -> Iterator[tuple[int | str, str, float]]:
    """The numbers among a node's arguments that become elements of a tensor."""
    operator = operator_name(node).rstrip("_")
    if operator in _LENGTHS:
        return
    for place, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        given = place < len(node.args)
        value = node.args[place] if given else node.kwargs.get(argument.name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        kind = str(argument.type).removeprefix("Optional[").removesuffix("]")
        if kind in ("number", "Tensor") or argument.name in _ELEMENTS.get(operator, ()):
            yield (place if given else argument.name), argument.name, value


def _fitted(value: float, dtype: torch.dtype, epsilon: bool) -> float:
    limits = torch.finfo(dtype)
    if math.isfinite(value) and not limits.min <= value <= limits.max:
        return limits.max if value > 0 else limits.min
    smallest = limits.tiny * limits.eps
    # Up to half of the smallest number is rounded to 0.
    if epsilon and 0 < value <= smallest / 2:
        return smallest
    return value
