"""CoreAlignment: the tensor constraint loss for an Overparam or an Expanded.

L = mean over aligned weights of   1/n_aux  sum over auxiliary cores of MSE(student, teacher)

attach   student cores <- canonical gauge, turned to the teacher's     once, before any step
step     dL_total/dcores += weight dL/dcores                           once per optimizer step
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from opdf_compile.distill.alignment import core_labels
from opdf_compile.distill.alignment.alignment_report import AlignmentReport, AlignmentRow
from opdf_compile.distill.alignment.pairs import (
    Pair,
    TeacherWeights,
    pair_up,
    pairs_of,
    require_parameters,
    weights_of,
)
from opdf_compile.distill.alignment.pulls import Pulls, shares
from opdf_compile.distill.alignment.turning import composed, put_cores, teacher_cores, turned
from opdf_compile.errors import InputError
from opdf_compile.planning import Plan
from opdf_compile.training import Expanded, States, WeightProgram

_Progress = Callable[[str, int, int], None]


class CoreAlignment:
    """Draws a student's auxiliary cores to its teacher's.

    The teacher's weights are decomposed once, in float64, with the student's modes; only the cores
    that are compared are kept, in the dtype and on the device of the student's. The student's cores
    are brought into the canonical gauge and turned to the teacher's, so that equal weights have the
    loss 0 whatever gauge they came in, and close weights a small one. The weights do not change.

    Cores whose shapes differ are left out; `report` says which. `opdf.joint_plan` chooses modes
    with which none differ for a teacher of another width.

    Args:
        teacher: The teacher, or its state_dict; it is read when the alignment is attached.
        layer_map: Pairs of weight names (student, teacher): a LayerMap, a mapping or a list.
        weight: What the loss is multiplied by; may be changed between steps.
        progress: Called with (weight, number done, number of weights) before each decomposition.

    Attributes:
        weight: As given.
        last: The loss at the last step, before it is multiplied by `weight`: a scalar. Where ranks
            share the program, the part of the weights held here (None if no aligned one is); the
            sum over ranks is the loss.

    Raises:
        InputError: The map or the weight is of the wrong kind.

    Source: arXiv 2411.06448, eq. 5; the gauge and its alignment are ours.

    Example:
        >>> import torch, opdf_compile as opdf
        >>> teacher, student = torch.nn.Linear(16, 16), torch.nn.Linear(16, 16)
        >>> alignment = opdf.CoreAlignment(teacher, [("weight", "weight")], weight=0.1)
        >>> opt = opdf.Overparam(student, torch.optim.AdamW, lr=1e-3, cores=3, alignment=alignment)
        >>> student(torch.randn(2, 16)).sum().backward()
        >>> opt.step(); alignment.last.item() > 0
        True
    """

    def __init__(
        self,
        teacher: TeacherWeights,
        layer_map: Any,
        weight: float = 1.0,
        *,
        progress: _Progress | None = None,
    ) -> None:
        """Keep what is given; nothing is decomposed before it is attached."""
        if (
            isinstance(weight, bool)
            or not isinstance(weight, int | float)
            or not 0 <= weight < 1e30
        ):
            raise InputError(f"the alignment's weight is {weight!r}, wanted a number from 0 on")
        weights_of(teacher)
        self.weight = float(weight)
        self.last: Tensor | None = None
        self._teacher = teacher
        self._wanted = pairs_of(layer_map)
        self._progress = progress
        self._pairs: tuple[Pair, ...] = ()
        self._targets: dict[str, dict[int, Tensor]] = {}
        self._start: dict[str, float] = {}
        self._terms: Pulls | None = None

    @property
    def report(self) -> AlignmentReport:
        """Which cores are compared and which are left out; prints as a table."""
        rows = (
            AlignmentRow(p.key, p.teacher, p.compared, p.note, self._start.get(p.key))
            for p in self._pairs
        )
        return AlignmentReport(tuple(rows))

    @property
    def targets(self) -> dict[str, dict[int, Tensor]]:
        """The teacher's cores, by the student's weight and the place of the core."""
        return {key: dict(kept) for key, kept in self._targets.items()}

    def check(self, plan: Plan, student: nn.Module | None = None) -> tuple[Pair, ...]:
        """Who is compared with whom under a plan; nothing is decomposed.

        Raises:
            InputError: No core can be compared, or the map names what is not there.
        """
        pairs = pair_up(plan, self._teacher, self._wanted)
        if student is not None:
            require_parameters(student, pairs)
        if not any(pair.compared for pair in pairs):
            planned = {entry.key for entry in plan.entries}
            first = next((pair for pair in pairs if pair.key in planned), pairs[0])
            raise InputError(
                f"no core can be aligned: {first.key!r} {first.note or 'has no auxiliary core'}; "
                "map weights that the plan over-parameterises, or make the plan with "
                "opdf.joint_plan(student, teacher, layer_map)"
            )
        return pairs

    def attach(
        self, program: WeightProgram | Expanded, keys: Collection[str] | None = None
    ) -> None:
        """Turn the student's cores to the teacher's; the weights keep their bits.

        `Overparam` calls it. For an Expanded call it once, before the training and before its state
        is loaded: there the composed weights move by the rounding of the cores.

        Args:
            program: A weight program or an Expanded.
            keys: The weights whose cores were made anew since; all if None.

        Raises:
            InputError: No core can be compared, or the map names what is not there.
        """
        if keys is None:
            self._pairs = self.check(
                program.plan, program.module if isinstance(program, WeightProgram) else None
            )
            self._targets, self._start, self.last = {}, {}, None
        wanted = [p.key for p in self._pairs if p.compared and (keys is None or p.key in keys)]
        self._terms = None
        if isinstance(program, WeightProgram):
            program.require_unchanged()
            # Read before the ranks part: sharded weights are gathered by all of them. Then each
            # turns what it holds, and what is wrong on one is raised on every one.
            weights = program.weights(wanted)
            program.ranks.together(partial(self._turn, program, weights))
        else:
            self._turn(program, {key: composed(program, key) for key in wanted})

    def add_gradients(self, program: WeightProgram) -> None:
        """Add weight dL/dcore to the cores that have a gradient, and set `last`."""
        # A batch may be taken apart, or the student moved, between any two steps.
        if self._terms is None or not self._terms.fit(program.units):
            self._move_targets(program)
            self._terms = Pulls(program.units, self._targets, self._count)
        self.last = self._terms.add(self.weight)

    def loss(self, model: Expanded) -> Tensor:
        """The loss of the inline form, weight x L, to be added to the total loss; differentiable.

        Raises:
            InputError: `attach(model)` was not called before.
        """
        if not self._targets:
            raise InputError(
                "the alignment was not attached, so its gauge is not fixed; call "
                "alignment.attach(model) once after expand, before training"
            )
        terms = []
        for key, kept in self._targets.items():
            cores, factors = model.cores(key), shares(kept, self._count)
            for k, target in kept.items():
                distant = (cores[k] - target.to(cores[k])).square().sum()
                terms.append(factors[k] * distant)
        total = torch.stack(terms).sum()
        self.last = total.detach()
        return self.weight * total

    def state_by_name(self) -> dict[str, dict[str, Any]]:
        """The teacher's cores as the student was aligned to them, by the student's weights."""
        return core_labels.by_name(self._targets)

    def require_state(self, states: States) -> None:
        """Refuse a state without the cores that the student was aligned to.

        Raises:
            InputError: One is missing or has another shape.
        """
        core_labels.require(states, self._targets)

    def load_state_by_name(self, states: States) -> None:
        """Take the teacher's cores over, so that the loss goes on as it was."""
        self._targets = core_labels.restored(states, self._targets)
        self._terms = None

    def state_dict(self) -> dict[str, Tensor]:
        """For the inline form, whose optimizer knows nothing of the alignment."""
        return {
            f"{key}.{label}": value
            for key, kept in self.state_by_name().items()
            for label, value in kept.items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` gave; call `attach` before.

        Raises:
            InputError: A core is missing or has another shape.
        """
        self.load_state_by_name(core_labels.unflattened(state))

    def __str__(self) -> str:
        return str(self.report)

    @property
    def _count(self) -> int:
        return sum(bool(pair.compared) for pair in self._pairs)

    def _turn(self, program: WeightProgram | Expanded, weights: Mapping[str, Tensor]) -> None:
        teacher = weights_of(self._teacher)
        by_key = {pair.key: pair for pair in self._pairs}
        for done, (key, weight) in enumerate(weights.items()):
            if self._progress is not None:
                self._progress(key, done, len(weights))
            pair, cores = by_key[key], program.cores(key)
            if key not in self._targets:
                self._targets[key] = teacher_cores(pair, teacher[pair.teacher], cores)
            moved, self._start[key] = turned(cores, pair, weight, self._targets[key])
            put_cores(program, key, moved)

    def _move_targets(self, program: WeightProgram) -> None:
        self._targets = {
            key: {k: target.to(program.cores(key)[k].device) for k, target in kept.items()}
            for key, kept in self._targets.items()
        }
