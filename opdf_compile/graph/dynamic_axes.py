"""Which axes of the inputs stay dynamic, and what they are called.

torch.export takes a request per axis: ``Dim.AUTO`` asks for a free size and fixes it where the
model does, None fixes it. (``Dim.DYNAMIC`` makes the same graph, and raises where the model fixes
the size: an export for nothing.) The `ladder` decides what is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.export import ExportedProgram

from opdf_compile.errors import InputError
from opdf_compile.graph.signature import CallArguments, request_tree, tensors_in

AxisNames = dict[str, dict[int, str]]
Axes = Sequence[str | int | None] | Mapping[int, str | int | None]
Dynamic = Mapping[str, Axes] | Literal[False] | None
BATCH = "batch_size"


def wanted_axes(names: Sequence[str], tensors: Sequence[Tensor], dynamic: Dynamic) -> AxisNames:
    """The axes that are asked to stay dynamic, by input name.

    Args:
        names: The name of each tensor of the inputs.
        tensors: The tensors.
        dynamic: None for the first axis of every tensor, called the batch where it is as long as
            that of the first; False for none; or for each input a letter per axis (equal letters
            are one size, a number or None is a fixed axis), or a mapping of axes to letters, in
            which an axis that is not named is fixed.

    Raises:
        InputError: `dynamic` names an unknown input, has another rank or other sizes than the
            example, or is of another form.
    """
    if dynamic is False:
        return {name: {} for name in names}
    named = dict(zip(names, tensors, strict=True))
    asked = asked_axes({name: tensor.ndim for name, tensor in named.items()}, dynamic)
    letters = {name: _letters(name, named[name], axes) for name, axes in asked.items()}
    sizes = {name: tensor.shape[0] for name, tensor in named.items() if tensor.ndim}
    free = {name: {0: letter} for name, letter in first_letters(sizes).items()}
    wanted = {name: letters.get(name, free.get(name, {})) for name in names}
    _require_one_size(wanted, named)
    return wanted


def first_letters(sizes: Mapping[str, int]) -> dict[str, str]:
    """What the first axes are called where nobody says it; one of another size is no batch.

    Args:
        sizes: The size of each tensor's first axis in the example, by name of the input.
    """
    batch = next(iter(sizes.values()), 0)
    return {name: BATCH if size == batch else f"{name}_axis_0" for name, size in sizes.items()}


def asked_axes(ranks: Mapping[str, int], dynamic: Dynamic) -> dict[str, dict[int, Any]]:
    """What `dynamic` says of each input that it names: letters and numbers, by axis from the first.

    Args:
        ranks: How many axes each tensor of the inputs has, by name.
        dynamic: As in `wanted_axes`, but False.

    Raises:
        InputError: It names an unknown input or axis, has another rank, or is of another form.
    """
    if not isinstance(dynamic, Mapping | None):
        raise InputError(
            f"dynamic is {dynamic!r}, wanted None for the first axis of every tensor, False for "
            'none, or a mapping of input names to axes; as {"x": ["batch", 3]}'
        )
    asked = dynamic or {}
    unknown = [name for name in asked if name not in ranks]
    if unknown:
        raise InputError(
            f"dynamic names the input {unknown[0]!r}, the tensor inputs are "
            f"{', '.join(ranks) or 'none'}; use one of these names"
        )
    found = {name: _by_axis(name, ranks[name], axes) for name, axes in asked.items()}
    for name, axes in found.items():
        for axis, letter in axes.items():
            if not isinstance(letter, str | int | None):
                raise InputError(
                    f"dynamic gives {letter!r} for axis {axis} of {name!r}, wanted a letter for a "
                    "free axis, or for a fixed one None or the example's size"
                )
    return found


def _by_axis(name: str, rank: int, axes: Axes) -> dict[int, Any]:
    if isinstance(axes, Mapping):
        strays = [axis for axis in axes if axis not in range(-rank, rank)]
        if strays:
            raise InputError(
                f"dynamic names axis {strays[0]!r} of {name!r}, the example has {rank} axes; "
                "count them from 0"
            )
        return {axis % rank: letter for axis, letter in axes.items()}
    if not isinstance(axes, Sequence):
        raise InputError(
            f"dynamic gives {axes!r} for {name!r}, wanted one letter or number per axis, or a "
            'mapping of axes to letters; as ["batch", 3] or {0: "batch"}'
        )
    if len(axes) != rank:
        raise InputError(
            f"dynamic gives {len(axes)} axes for {name!r}, the example has {rank}; "
            "give one letter or number per axis"
        )
    return dict(enumerate(axes))


def _letters(name: str, leaf: Tensor, axes: Mapping[int, Any]) -> dict[int, str]:
    """The letters of the free axes; a number must be the size that the example has there."""
    for axis, letter in axes.items():
        if isinstance(letter, int) and letter != leaf.shape[axis]:
            raise InputError(
                f"dynamic gives {letter} for axis {axis} of {name!r}, wanted a letter for a free "
                f"axis, or for a fixed one None or the example's size, {leaf.shape[axis]}"
            )
    return {axis: letter for axis, letter in axes.items() if isinstance(letter, str)}


def _require_one_size(letters: AxisNames, tensors: Mapping[str, Tensor]) -> None:
    """Equal letters are one size, in the file and in what is drawn for it: so in the example."""
    first: dict[str, tuple[str, int]] = {}
    for name, axes in letters.items():
        for axis, letter in axes.items():
            other, at = first.setdefault(letter, (name, axis))
            here, there = tensors[name].shape[axis], tensors[other].shape[at]
            if here != there:
                raise InputError(
                    f"dynamic gives axis {at} of {other!r} and axis {axis} of {name!r} one letter, "
                    f"{letter!r}, and the example has {there} and {here} there, wanted one size; "
                    "give them two letters, or an example of one size"
                )


def request_axes(
    inputs: CallArguments, names: Sequence[str], axes: AxisNames, hint: Any
) -> CallArguments:
    """``(args, kwargs)`` with every tensor replaced by {axis: hint} for the axes asked for."""
    rest = iter(names)

    def ask(leaf: Any) -> Any:
        free = axes.get(next(rest), {}) if isinstance(leaf, Tensor) else {}
        return dict.fromkeys(free, hint) or None

    leaves, spec = pytree.tree_flatten(inputs)
    args, kwargs = request_tree([ask(leaf) for leaf in leaves], spec)
    return args, kwargs


def widen_axes(inputs: CallArguments, names: Sequence[str], axes: AxisNames) -> CallArguments:
    """Repeat every dynamic axis of size 1 to size 2.

    torch.export specialises an axis whose example is 1 (or refuses it), so an example of batch 1
    would make the batch static without a word. torch.export also marks the tensors that it is
    given, so every tensor comes back as a new object: no mark outlives a rung, or reaches the
    caller's own inputs.
    """
    rest = iter(names)

    def repeat(tensor: Tensor) -> Tensor:
        for axis in axes.get(next(rest), {}):
            if tensor.shape[axis] == 1:
                tensor = tensor.repeat_interleave(2, dim=axis)
        return tensor.detach().requires_grad_(tensor.requires_grad)

    args, kwargs = pytree.tree_map_only(Tensor, repeat, inputs)
    return args, kwargs


def not_one(inputs: CallArguments, names: Sequence[str], axes: AxisNames) -> AxisNames:
    """The part of `axes` whose example size is not 1: widening those that are may break a model."""
    shapes = dict(zip(names, (tensor.shape for tensor in tensors_in(inputs)), strict=True))
    return {
        name: {axis: letter for axis, letter in wanted.items() if shapes[name][axis] != 1}
        for name, wanted in axes.items()
    }


def static_axes(program: ExportedProgram, names: Sequence[str], axes: AxisNames) -> list[str]:
    """Sentences for the axes that were asked to be dynamic and came out fixed."""
    sentences = []
    for name, shape in zip(names, input_shapes(program), strict=False):
        for axis, letter in axes.get(name, {}).items():
            if not is_free(shape[axis]):
                sentences.append(
                    f"axis {axis} ({letter}) of {name} is fixed at {int(shape[axis])}: "
                    "the model does not allow another size there"
                )
    return sentences


def is_free(size: int | torch.SymInt) -> bool:
    """Whether a size is still open: the tracer keeps the symbol of one that the model fixed."""
    return isinstance(size, torch.SymInt) and bool(size.node.expr.free_symbols)


def input_shapes(program: ExportedProgram) -> list[torch.Size]:
    """Symbolic shapes of the program's tensor inputs, in order."""
    return [value.shape for _name, value in tensor_inputs(program)]


def tensor_inputs(program: ExportedProgram) -> Iterator[tuple[str, Tensor]]:
    """Names and recorded values of the program's tensor inputs, in order."""
    wanted = set(program.graph_signature.user_inputs)
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if node.op == "placeholder" and node.name in wanted and isinstance(value, Tensor):
            yield node.name, value


def kept_axes(program: ExportedProgram, names: Sequence[str], wanted: AxisNames) -> AxisNames:
    """The part of `wanted` that the program kept dynamic."""
    return {
        name: {
            axis: letter for axis, letter in wanted.get(name, {}).items() if is_free(shape[axis])
        }
        for name, shape in zip(names, input_shapes(program), strict=False)
    }
