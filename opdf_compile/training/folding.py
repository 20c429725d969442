"""fold: Expanded, WeightProgram or Overparam -> the student, the class you came with.

A planned weight is what `PlanEntry.fold` makes of its cores. Everything else is copied bit for bit:
weights that were not planned, and buffers that training moved (BatchNorm statistics).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol, TypeVar, overload

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from opdf_compile.errors import FoldError
from opdf_compile.graph import deep_copy, named_tensors
from opdf_compile.training.branched.branching import fold_branches, has_branches
from opdf_compile.training.inline.expanded import Expanded

_Branched = TypeVar("_Branched", bound=nn.Module)


class Hoisted(Protocol):
    """A weight program, or an optimizer that has one."""

    def fold(self, source: Any = None, into: nn.Module | None = None) -> nn.Module:
        """The student with plain weights."""
        ...


@overload
def fold(
    expanded: Hoisted,
    *,
    source: Literal["cores", "weights"] | None = None,
    into: nn.Module | None = None,
) -> nn.Module: ...


@overload
def fold(  # type: ignore[overload-overlap]  # An Expanded comes back as what was traced.
    expanded: Expanded,
) -> nn.Module | ExportedProgram: ...


@overload
def fold(expanded: _Branched) -> _Branched: ...


def fold(
    expanded: Expanded | Hoisted | nn.Module,
    *,
    source: Literal["cores", "weights"] | None = None,
    into: nn.Module | None = None,
) -> nn.Module | ExportedProgram:
    """Multiply the cores out, add the branches up, and put the weights back into the student.

    Args:
        expanded: What was trained: an Expanded, a WeightProgram, an Overparam, or what
            `opdf.branch` returned; it is left as it is.
        source: Of a hoisted form whose weights something else has changed: "cores" folds the
            cores, "weights" takes the weights as they are now.
        into: A plain student to fill, in place of a copy of the module; a hoisted form of a
            sharded module (FSDP2) needs it.

    Returns:
        A new student: same class, state_dict keys, shapes, dtypes, ties, requires_grad and
        train/eval flags as the one that was traced, on the device that was trained on. A program
        where a program was traced.

    Raises:
        FoldError: The argument is nothing that can be folded, or its cores hold NaN or infinity.
        WeightsChanged: Something else changed the weights of a hoisted form.
    """
    if not isinstance(expanded, Expanded):
        return _fold_other(expanded, source, into)
    if source is not None or into is not None:
        raise FoldError(
            "source and into are for hoisted forms, found an Expanded: it owns its cores and its "
            "copy of the student; call fold(expanded)"
        )
    values = folded_state(expanded)
    copied = deep_copy(expanded.source)
    if isinstance(copied, ExportedProgram):
        overwrite(dict(copied.state_dict), values)
        return copied
    overwrite(named_tensors(copied), values)
    return copied


def _fold_other(trained: Hoisted | nn.Module, source: Any, into: nn.Module | None) -> nn.Module:
    """What is no Expanded: a hoisted form, or a student with branches beside its modules."""
    if has_branches(trained) and source is into is None:
        assert isinstance(trained, nn.Module)
        return fold_branches(trained)
    folder = getattr(trained, "fold", None)
    if folder is None or isinstance(trained, nn.Module):
        raise FoldError(
            f"fold got a {type(trained).__name__}, wanted the module that opdf.expand or "
            "opdf.branch returned, a WeightProgram or an Overparam; torch.compile wraps it: fold "
            "the module that was compiled"
        )
    student: nn.Module = folder(source=source, into=into)
    return student


def folded_state(expanded: Expanded) -> dict[str, Tensor]:
    """Every tensor of the folded student by name, aliases of tied weights included."""
    values: dict[str, Tensor] = {}
    for entry in expanded.plan.entries:
        weight = entry.fold(expanded.cores(entry.key))
        values.update(dict.fromkeys((entry.key, *entry.aliases), weight))
    cores = {name for entry in expanded.plan.entries for name in entry.core_names}
    named = {n: tensor.detach() for n, tensor in named_tensors(expanded).items() if n not in cores}
    beside = tuple(f"{site.branches_name}." for site in expanded.plan.sites)
    values.update({name: tensor for name, tensor in named.items() if not name.startswith(beside)})
    for site in expanded.plan.sites:
        values.update(site.fold(named))
    return values


def require_same_names(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Refuse to fill a module of another make; nothing is written then.

    Raises:
        FoldError: Its names are others than those of the values.
    """
    odd = sorted(tensors.keys() ^ values.keys())
    if odd:
        raise FoldError(
            f"the module to fill and the student differ in {odd[0]!r} ({len(odd)} names in all), "
            "wanted an instance built as the student was"
        )


def overwrite(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Give tensors new values, on the values' devices; those without a value stay.

    Raises:
        FoldError: A value has another shape.
    """
    with torch.no_grad():
        for name, tensor in tensors.items():
            value = values.get(name)
            if value is None:
                continue  # Not read by any graph: as it was when the student was traced.
            if value.shape != tensor.shape:
                raise FoldError(
                    f"{name!r} came out with shape {tuple(value.shape)}, the student has "
                    f"{tuple(tensor.shape)}; fold with the plan it was expanded with"
                )
            # .data keeps the Parameter object, and with it every tie and hook.
            # The layout of the skeleton (channels_last), the device of what was trained.
            tensor.data = torch.empty_like(tensor, device=value.device).copy_(value)
