"""fold: Expanded -> the student, the class you came with.

    W = round(compose(T_1, .., T_n))     composed in float64, rounded once to the weight's dtype

Everything else is copied bit for bit: weights that were not planned, and buffers that training
moved (BatchNorm statistics).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from opdf_compile.errors import FoldError
from opdf_compile.graph.sharing import deep_copy
from opdf_compile.parametrizations.registry import get
from opdf_compile.passes.regions import require_finite
from opdf_compile.plan.value import PlanEntry
from opdf_compile.training.expanded import Expanded


def fold(expanded: Expanded) -> nn.Module | ExportedProgram:
    """Multiply the cores out and put the weights back into the student.

    Args:
        expanded: The trained module; it is left as it is.

    Returns:
        A new student: same class, state_dict keys, shapes, dtypes, ties, requires_grad and
        train/eval flags as the one that was traced, on the device that was trained on. A program
        where a program was traced.

    Raises:
        FoldError: The argument is no Expanded, or its cores hold NaN or infinity.
    """
    if not isinstance(expanded, Expanded):
        raise FoldError(
            f"fold got a {type(expanded).__name__}, wanted the module that opdf.expand returned; "
            "torch.compile wraps it: fold the module that was compiled"
        )
    values = folded_state(expanded)
    student = deep_copy(expanded.source)
    if isinstance(student, ExportedProgram):
        _fill(dict(student.state_dict), values)
        return student
    owned: dict[str, Tensor] = dict(student.named_parameters(remove_duplicate=False))
    owned.update(student.named_buffers(remove_duplicate=False))
    _fill(owned, values)
    return student


def folded_state(expanded: Expanded) -> dict[str, Tensor]:
    """Every tensor of the folded student by name, aliases of tied weights included."""
    values: dict[str, Tensor] = {}
    for entry in expanded.plan.entries:
        weight = _weight(expanded, entry)
        values.update(dict.fromkeys((entry.key, *entry.aliases), weight))
    cores = tuple(f"{entry.key}_cores." for entry in expanded.plan.entries)
    named = (
        *expanded.named_parameters(remove_duplicate=False),
        *expanded.named_buffers(remove_duplicate=False),
    )
    values.update({n: t.detach() for n, t in named if not n.startswith(cores)})
    return values


def _weight(expanded: Expanded, entry: PlanEntry) -> Tensor:
    wide = [core.detach().double() for core in expanded.cores(entry.key)]
    weight: Tensor = get(entry.parametrization).compose(wide, entry.spec.with_dtype("float64"))
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
            tensor.data = value.to(tensor.dtype, copy=True)
