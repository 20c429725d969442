"""fold: Expanded, WeightProgram or Overparam -> the student, the class you came with.

    W = round(compose(T_1, .., T_n))     composed in float64, rounded once to the weight's dtype

Everything else is copied bit for bit: weights that were not planned, and buffers that training
moved (BatchNorm statistics).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol, overload

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from opdf_compile.errors import FoldError
from opdf_compile.graph import deep_copy
from opdf_compile.parametrizations import registered
from opdf_compile.passes import require_finite
from opdf_compile.planning import PlanEntry
from opdf_compile.training.hoisted.binding import is_sharded, reshard, whole
from opdf_compile.training.inline.expanded import Expanded

if TYPE_CHECKING:
    from opdf_compile.training.hoisted.program import WeightProgram


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
def fold(expanded: Expanded) -> nn.Module | ExportedProgram: ...


def fold(
    expanded: Expanded | Hoisted,
    *,
    source: Literal["cores", "weights"] | None = None,
    into: nn.Module | None = None,
) -> nn.Module | ExportedProgram:
    """Multiply the cores out and put the weights back into the student.

    Args:
        expanded: What was trained: an Expanded, a WeightProgram or an Overparam; it is left as it
            is.
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
        folder = getattr(expanded, "fold", None)
        if folder is None or isinstance(expanded, nn.Module):
            raise FoldError(
                f"fold got a {type(expanded).__name__}, wanted the module that opdf.expand "
                "returned, a WeightProgram or an Overparam; torch.compile wraps it: fold the "
                "module that was compiled"
            )
        student: nn.Module = folder(source=source, into=into)
        return student
    if source is not None or into is not None:
        raise FoldError(
            "source and into are for hoisted forms, found an Expanded: it owns its cores and its "
            "copy of the student; call fold(expanded)"
        )
    values = folded_state(expanded)
    copied = deep_copy(expanded.source)
    if isinstance(copied, ExportedProgram):
        _fill(dict(copied.state_dict), values)
        return copied
    _fill(_owned(copied), values)
    return copied


def fold_program(
    program: WeightProgram, source: Literal["cores", "weights"] | None, into: nn.Module | None
) -> nn.Module:
    """The student of a weight program; see `fold`."""
    if source not in (None, "cores", "weights"):
        raise FoldError(f"source is {source!r}, wanted 'cores', 'weights' or nothing")
    if source != "weights":
        program.require_held()
    if source is None:
        program.require_unchanged()
    module = program.module
    reshard(module)  # An unsharded module does not look like a sharded one.
    sharded = is_sharded(module.parameters())
    if sharded and into is None:
        raise FoldError(
            f"the {type(module).__name__} is sharded, and a copy of it would be sharded too; give "
            "a plain student to fill: fold(program, into=student)"
        )
    # Gathering is collective, so every rank reads every tensor, in one order.
    values = {name: whole(tensor.detach()) for name, tensor in _owned(module).items()}
    if source != "weights":
        folded = program.folded_weights()
        for entry in program.plan.entries:
            values.update(dict.fromkeys((entry.key, *entry.aliases), folded[entry.key]))
    student = deep_copy(module) if into is None else into
    _require_student(student, values)
    _fill(_owned(student), values)
    return student


def _owned(module: nn.Module) -> dict[str, Tensor]:
    owned: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    owned.update(module.named_buffers(remove_duplicate=False))
    return owned


def _require_student(student: nn.Module, values: dict[str, Tensor]) -> None:
    """Refuse to fill a module of another make; nothing is written then."""
    owned = _owned(student)
    odd = sorted(owned.keys() ^ values.keys())
    if odd:
        raise FoldError(
            f"the module to fill and the student differ in {odd[0]!r} ({len(odd)} names in all), "
            "wanted an instance built as the student was"
        )


def folded_state(expanded: Expanded) -> dict[str, Tensor]:
    """Every tensor of the folded student by name, aliases of tied weights included."""
    values: dict[str, Tensor] = {}
    for entry in expanded.plan.entries:
        weight = _weight(expanded, entry)
        values.update(dict.fromkeys((entry.key, *entry.aliases), weight))
    cores = {name for entry in expanded.plan.entries for name in entry.core_names}
    named = (
        *expanded.named_parameters(remove_duplicate=False),
        *expanded.named_buffers(remove_duplicate=False),
    )
    values.update({n: t.detach() for n, t in named if n not in cores})
    return values


def _weight(expanded: Expanded, entry: PlanEntry) -> Tensor:
    wide = [core.detach().double() for core in expanded.cores(entry.key)]
    weight: Tensor = registered(entry.parametrization).compose(
        wide, entry.spec.with_dtype("float64")
    )
    # Rounding first: a value may be finite in float64 and infinite in float16.
    require_finite(entry.key, weight.to(getattr(torch, entry.spec.dtype)))
    return weight


def _fill(owned: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in owned.items():
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
