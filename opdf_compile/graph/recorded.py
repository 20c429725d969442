"""What a program says about inputs that it came without: names, dynamic axes, shapes, dtypes."""

from __future__ import annotations

from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.export import Dim, ExportedProgram

from opdf_compile.errors import InputError
from opdf_compile.graph.dynamic_axes import (
    AxisNames,
    Dynamic,
    asked_axes,
    first_letters,
    is_free,
    static_axes,
    tensor_inputs,
)
from opdf_compile.graph.signature import CallArguments, plain_spec, request_tree


def concrete(size: int | torch.SymInt) -> int:
    """A size as the number it had in the example; 2 where that is not known."""
    if isinstance(size, torch.SymInt):
        hint = size.node.hint
        return int(hint) if hint is not None else 2
    return int(size)


def recorded_axes(program: ExportedProgram, dynamic: Dynamic) -> tuple[AxisNames, list[str]]:
    """The dynamic axes of each tensor input of a program that came without its request.

    A first axis is called the batch where it is as long in the example as that of the first tensor;
    other symbols keep a letter of their own, equal symbols the same one.

    Args:
        program: Its free axes are what they are: nothing is asked of torch.export any more.
        dynamic: Letters for the axes of an input, where they are known.

    Returns:
        The axes, and sentences for those that were asked to be dynamic and that it has fixed.

    Raises:
        InputError: An axis is to be fixed that the program keeps free, or at another size than it
            has, or `dynamic` does not fit the inputs.
    """
    shapes = {name: value.shape for name, value in tensor_inputs(program)}
    ranks = {name: len(shape) for name, shape in shapes.items()}
    given = {} if dynamic is False else asked_axes(ranks, dynamic)
    usual = first_letters({name: concrete(shape[0]) for name, shape in shapes.items() if shape})
    axes: AxisNames = {}
    letters: dict[str, str] = {}
    for name, shape in shapes.items():
        axes[name] = {}
        for axis, size in enumerate(shape):
            known = given.get(name, {}).get(axis)
            if dynamic is False or isinstance(known, int):
                _require_fixed(f"axis {axis} of {name!r}", size, known)
            if is_free(size):
                fallback = f"{name}_axis_{axis}" if axis else usual[name]
                letter = known if isinstance(known, str) else fallback
                axes[name][axis] = letters.setdefault(str(size), letter)
    asked = {
        name: {axis: letter for axis, letter in of.items() if isinstance(letter, str)}
        for name, of in given.items()
    }
    return axes, static_axes(program, tuple(shapes), asked)


def _require_fixed(where: str, size: int | torch.SymInt, asked: int | None) -> None:
    """Refuse a free axis, and a fixed one of another size than was asked for, if any was."""
    if is_free(size):
        raise InputError(
            f"dynamic asks for a fixed size in {where}, and the program keeps it free; to fix it, "
            "export the program again without it in dynamic_shapes"
        )
    if asked not in (None, size):
        raise InputError(
            f"dynamic gives {asked} for {where}, which the program has fixed at {int(size)}; give "
            "that number, or None"
        )


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
