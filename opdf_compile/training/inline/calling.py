"""Calls in the user's own way, brought into the one form that the graph was traced with.

An exported graph takes a flat list of leaves. The user may pass by keyword what was traced by
position, or the other way round; both become the traced ``(args, kwargs)`` tree here.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind

from opdf_compile.errors import InputError
from opdf_compile.graph import (
    CallArguments,
    Phase,
    forward_names,
    input_shapes,
    is_free,
    path_name,
    recorded_request,
)


@dataclass(frozen=True)
class Convention:
    """How one model is called.

    Attributes:
        spec: The traced tree of ``(args, kwargs)``.
        names: Names of the positional arguments that were traced.
        keywords: Names of the keyword arguments that were traced.
        signature: The source's own signature, or None for a program.
        fixed: For each phase, (input name, axis, size) of every axis that its graph holds at one
            size.
        tensors: Names of the tensor inputs in order.
        dynamic: For each phase, ``(args, kwargs)`` with {axis: Dim.AUTO} for the free axes.
        constants: (position among the leaves, value) of what the graph took as a constant.
    """

    spec: pytree.TreeSpec
    names: tuple[str, ...]
    keywords: tuple[str, ...]
    signature: inspect.Signature | None
    fixed: Mapping[Phase, tuple[tuple[str, int, int], ...]]
    tensors: tuple[str, ...]
    dynamic: Mapping[Phase, CallArguments]
    constants: tuple[tuple[int, Any], ...] = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Convention:
        """Nothing here is ever changed, so copies of a module share it."""
        return self

    def flatten(self, args: tuple[Any, ...], kwargs: dict[str, Any], phase: Phase) -> list[Any]:
        """The leaves of a call in the graph's order.

        Raises:
            InputError: The call has other inputs than the graph was traced with.
        """
        leaves, spec = pytree.tree_flatten((args, kwargs))
        if spec != self.spec:
            args, kwargs = self._rearrange(args, kwargs)
            leaves, spec = pytree.tree_flatten((args, kwargs))
            if spec != self.spec:
                raise InputError(
                    f"the inputs have the structure {spec}, the graph was traced with {self.spec}; "
                    "call it with inputs of the structure it was traced with"
                )
        if not torch.compiler.is_compiling():
            self._check_constants(leaves)
            self._check_fixed([leaf for leaf in leaves if isinstance(leaf, Tensor)], phase)
        return leaves

    def _rearrange(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if self.signature is None:
            given = {**dict(zip((*self.names, *self.keywords), args, strict=False)), **kwargs}
        else:
            given = {}
            for name, value in self._bound(args, kwargs).items():
                given.update(self._spread(name, value))
        traced = (*self.names, *self.keywords)
        given = {**self._defaults(), **given}
        missing = [name for name in traced if name not in given]
        extra = [name for name, value in given.items() if name not in traced and value is not None]
        if missing or extra:
            raise InputError(
                f"the call gives {', '.join(given) or 'no inputs'}, the graph was traced with "
                f"{', '.join(traced)}; pass exactly these, or trace again with other examples"
            )
        return tuple(given[n] for n in self.names), {n: given[n] for n in self.keywords}

    def _spread(self, name: str, value: Any) -> dict[str, Any]:
        """One parameter of forward as the inputs that came in through it."""
        assert self.signature is not None
        kind = self.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            return dict(value)
        if kind is inspect.Parameter.VAR_POSITIONAL:
            return {f"{name}_{index}": part for index, part in enumerate(value)}
        return {name: value}

    def _bound(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        assert self.signature is not None
        try:
            return dict(self.signature.bind(*args, **kwargs).arguments)
        except TypeError as error:
            raise InputError(
                f"the call does not fit forward{self.signature}: {error}; call it as the student"
            ) from error

    def _defaults(self) -> dict[str, Any]:
        """What forward itself puts in place of inputs that were traced and are left out."""
        known = self.signature.parameters if self.signature is not None else {}
        return {
            name: known[name].default
            for name in (*self.names, *self.keywords)
            if name in known and known[name].default is not inspect.Parameter.empty
        }

    def _check_constants(self, leaves: list[Any]) -> None:
        constants = dict(self.constants)
        for position, leaf in enumerate(leaves):
            if position in constants:
                traced = constants[position]
                same = type(leaf) is type(traced) and leaf == traced
                wanted = repr(traced)
            else:
                same, wanted = isinstance(leaf, Tensor), "a tensor"
            if not same:
                found = "a tensor" if isinstance(leaf, Tensor) else repr(leaf)
                raise InputError(
                    f"the input {self._name(position)!r} is {found}, the graph was traced with "
                    f"{wanted}; pass that, or trace again with the other value"
                )

    def _name(self, position: int) -> str:
        """The name of a leaf: its argument's, and the path inside it."""
        places = pytree.tree_unflatten(list(range(self.spec.num_leaves)), self.spec)
        half, top, *rest = pytree.tree_flatten_with_path(places)[0][position][0]
        index = getattr(top, "idx", len(self.names)) if path_name([half]) == "0" else -1
        named = 0 <= index < len(self.names)
        label = self.names[index] if named else path_name([top])
        return "_".join(filter(None, (label, path_name(rest))))

    def _check_fixed(self, tensors: list[Tensor], phase: Phase) -> None:
        shapes = dict(zip(self.tensors, tensors, strict=False))
        for name, axis, size in self.fixed[phase]:
            found = shapes[name]
            if found.ndim <= axis or found.shape[axis] != size:
                raise InputError(
                    f"the input {name!r} has shape {tuple(found.shape)}, the graph holds axis "
                    f"{axis} at {size}; pass that size, or trace with a dynamic axis there"
                )


def convention(
    programs: Mapping[Phase, ExportedProgram], forward: Any | None, tensors: tuple[str, ...]
) -> Convention:
    """Read the call convention of a model's programs.

    `forward` is the source's, None where that is a program; `tensors` names the tensor inputs.
    """
    program = programs["train"]
    spec = program.call_spec.in_spec
    positional, keyword = spec.children()
    count = positional.num_children
    keywords = tuple(keyword.context) if keyword.num_children else ()
    signature = inspect.signature(forward) if forward is not None else None
    names = tensors[:count] if forward is None else forward_names(forward, count)
    return Convention(
        spec,
        tuple(names),
        keywords,
        signature,
        {phase: tuple(_fixed(own, tensors)) for phase, own in programs.items()},
        tensors,
        {phase: recorded_request(own) for phase, own in programs.items()},
        tuple(_constants(program)),
    )


def _fixed(program: ExportedProgram, tensors: tuple[str, ...]) -> Iterator[tuple[str, int, int]]:
    for name, shape in zip(tensors, input_shapes(program), strict=False):
        for axis, size in enumerate(shape):
            if not is_free(size):
                yield name, axis, int(size)


def _constants(program: ExportedProgram) -> Iterator[tuple[int, Any]]:
    inputs = [s for s in program.graph_signature.input_specs if s.kind is InputKind.USER_INPUT]
    for position, spec in enumerate(inputs):
        if isinstance(spec.arg, ConstantArgument):
            yield position, spec.arg.value
