"""joint_plan: a plan with which every auxiliary core has a counterpart in the teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from opdf_compile.distill.alignment.alignment_report import AlignmentReport, AlignmentRow
from opdf_compile.distill.alignment.pairs import Pair, TeacherWeights, alike, pair_up, pairs_of
from opdf_compile.errors import InputError, PlanError
from opdf_compile.graph import Traced, match
from opdf_compile.parametrizations import MatrixSpec, MpoSpec
from opdf_compile.planning import DEFAULT_CORES, DEFAULT_MIN_SIZE, Plan, PlanEntry
from opdf_compile.planning import plan as make_plan
from opdf_compile.tensor import joint_modes


@dataclass(frozen=True)
class JointPlan:
    """A student's plan, and what its teacher's weights become with the same outer modes.

    Attributes:
        plan: The student's plan; give it to `Overparam` or `expand`.
        teacher: The chain of each teacher weight that a student weight is compared with.
        report: Which cores are compared; prints as a table.
    """

    plan: Plan
    teacher: Mapping[str, MpoSpec]
    report: AlignmentReport

    def __str__(self) -> str:
        return f"{self.plan}\n\n{self.report}"


def joint_plan(
    student: Traced | nn.Module,
    teacher: TeacherWeights,
    layer_map: Any,
    cores: int = DEFAULT_CORES,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    min_size: int = DEFAULT_MIN_SIZE,
) -> JointPlan:
    """Choose modes that a student shares with its teacher, whatever the widths of the two.

    A weight of its teacher's shape, or without a teacher, gets the usual modes. Any other gets
    outer modes that divide the sizes of both, so that every auxiliary core has a counterpart of
    equal shape; the central cores take up the difference.

    Args:
        student: Traced, or a module.
        teacher: A module, or its state_dict.
        layer_map: Pairs of weight names (student, teacher): a LayerMap, a mapping or a list.
        cores: Cores per weight.
        include: As in `opdf.plan`.
        exclude: As in `opdf.plan`.
        min_size: As in `opdf.plan`.

    Raises:
        PlanError: Two weights have no outer modes in common.
        InputError: The map names what is not there.

    Example:
        >>> import torch
        >>> student, teacher = torch.nn.Linear(48, 48), torch.nn.Linear(96, 96)
        >>> joint = joint_plan(student, teacher, [("weight", "weight")])
        >>> joint.plan.entries[0].spec.chain.bonds == joint.teacher["weight"].chain.bonds
        True
    """
    usual = make_plan(student, cores=cores, include=include, exclude=exclude, min_size=min_size)
    kernels = {m.key: m.kernel for m in match(student).matches}
    pairs = pairs_of(layer_map)
    forms = {p.key: p for p in pair_up(usual, teacher, pairs)}
    entries = tuple(
        _joint(entry, forms.get(entry.key), kernels.get(entry.key, 1), cores)
        for entry in usual.entries
    )
    made = replace(usual, entries=entries, request={"cores": cores, "joint": True})
    if usual.model is not None:
        made = made.made_for(usual.model)
    found = pair_up(made, teacher, pairs)
    return JointPlan(
        made,
        {p.teacher: p.teacher_spec for p in found if p.teacher_spec is not None},
        AlignmentReport(
            tuple(AlignmentRow(p.key, p.teacher, p.compared, p.note, None) for p in found)
        ),
    )


def _joint(entry: PlanEntry, pair: Pair | None, kernel: int, cores: int) -> PlanEntry:
    if pair is None or (pair.compared and not pair.note):
        return entry
    spec = entry.spec
    assert isinstance(spec, MpoSpec)
    if not alike(spec, pair.shape):
        raise PlanError(
            f"no joint modes for the student's {entry.key!r} of shape {list(spec.shape)} and the "
            f"teacher's {pair.teacher!r} of shape {list(pair.shape)}: their kernels differ; take "
            "the pair out of the layer map"
        )
    other = MatrixSpec(pair.shape, spec.dtype, pair.transposed, spec.row_axes)
    sizes = [(form.rows, form.cols) for form in (spec, other)]
    try:
        modes, _ = joint_modes(sizes, cores, kernel=kernel)
    except InputError as error:
        raise PlanError(
            f"no joint modes for the student's {entry.key!r} and the teacher's {pair.teacher!r}: "
            f"{error}; take the pair out of the layer map"
        ) from error
    return replace(entry, spec=replace(spec, out_modes=modes[0], in_modes=modes[1]))
