"""What a program says about inputs that it came without: names, dynamic axes, shapes, dtypes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.export import Dim, ExportedProgram

from opdf_compile.graph.dynamic_axes import BATCH, AxisNames, is_free, tensor_inputs
from opdf_compile.graph.signature import CallArguments, plain_spec, request_tree


def concrete(size: int | torch.SymInt) -> int:
    """A size as the number it had in the example; 2 where that is not known."""
    if isinstance(size, torch.SymInt):
        hint = size.node.hint
        return int(hint) if hint is not None else 2
    return int(size)


def recorded_axes(
    program: ExportedProgram, given: Mapping[str, Sequence[str | int | None]]
) -> AxisNames:
    """The dynamic axes of each tensor input of a program that came without its request.

    The symbol of the first tensor's first axis is called the batch; other symbols keep a letter of
    their own, equal symbols the same one.

    `given` are letters for the axes of an input, where they are known.
    """
    axes: AxisNames = {}
    letters: dict[str, str] = {}
    for name, value in tensor_inputs(program):
        axes[name] = {}
        for axis, size in enumerate(value.shape):
            if is_free(size):
                known = dict(enumerate(given.get(name, ()))).get(axis)
                fallback = BATCH if axis == 0 else f"{name}_axis_{axis}"
                letter = known if isinstance(known, str) else fallback
                axes[name][axis] = letters.setdefault(str(size), letter)
    return axes


def recorded_inputs(program: ExportedProgram) -> CallArguments:
    """Inputs of the recorded shapes: random floats, ones for everything else."""
    if program.example_inputs is not None:
        args, kwargs = program.example_inputs
        return tuple(args), dict(kwargs)
    generator = torch.Generator().manual_seed(0)

    def draw(value: Tensor) -> Tensor:
        shape = [concrete(size) for size in value.shape]
        if value.dtype.is_floating_point:
            return torch.randn(shape, generator=generator).to(value.dtype)
        return torch.ones(shape, dtype=value.dtype)

    leaves = _mapped(program, draw)
    args, kwargs = pytree.tree_unflatten(leaves, program.call_spec.in_spec)
    return args, kwargs


def recorded_request(program: ExportedProgram) -> CallArguments:
    """``(args, kwargs)`` with {axis: Dim.AUTO} for every axis that the program keeps dynamic.

    It has the form of `plain_spec`, in which the program is exported again.
    """

    def ask(value: Tensor) -> Any:
        sizes = enumerate(value.shape)
        return {a: Dim.AUTO for a, size in sizes if is_free(size)} or None

    args, kwargs = request_tree(_mapped(program, ask), plain_spec(program.call_spec.in_spec))
    return args, kwargs


def _mapped(program: ExportedProgram, function: Any) -> list[Any]:
    """What a function makes of each tensor input; None for the others."""
    wanted = list(program.graph_signature.user_inputs)
    values = {
        node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"
    }
    leaves = []
    for name in wanted:
        value = values.get(name) if isinstance(name, str) else name
        leaves.append(function(value) if isinstance(value, Tensor) else None)
    return leaves
