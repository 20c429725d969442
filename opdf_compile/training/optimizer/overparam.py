"""Overparam: over-parameterisation as a property of the optimizer.

    step():   pull dL/dW to the cores  ->  decay  ->  wrapped optimizer  ->  W <- compose(cores)

Its param groups hold the student's own parameters, matched weights included. So loss scaling looks
at dL/dW, clipping acts on dL/dW (in weight space), schedulers change its options, and every trainer
that knows what an optimizer is knows this one. The cores are its state.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from opdf_compile.errors import InputError
from opdf_compile.planning import Plan
from opdf_compile.training.branched.branching import branch_prefixes
from opdf_compile.training.hoisted.batching import Batched
from opdf_compile.training.hoisted.binding import reshard, unwrap
from opdf_compile.training.hoisted.hoisting import hoist
from opdf_compile.training.hoisted.program import FoldSource, WeightProgram
from opdf_compile.training.optimizer.alignment import Alignment, require_alignable
from opdf_compile.training.optimizer.arguments import (
    ELEMENTWISE,
    batching_of,
    class_name,
    class_of,
    homes,
    needs_closure,
    plan_of,
    require_shareable,
    student_behind,
)
from opdf_compile.training.optimizer.by_group import halved, warn_of_halves
from opdf_compile.training.optimizer.decay import require_multilinear
from opdf_compile.training.optimizer.decay_rule import DecayRule, decay_rule_of, require_rule
from opdf_compile.training.optimizer.early import moves_early
from opdf_compile.training.optimizer.following import ParameterNames
from opdf_compile.training.optimizer.groups import Group, decays, outer_groups
from opdf_compile.training.optimizer.probing import build_inner, probe, require_others
from opdf_compile.training.optimizer.regrouping import GroupPlaces
from opdf_compile.training.optimizer.saved_state import SavedState
from opdf_compile.training.optimizer.step_facts import facts_of
from opdf_compile.training.optimizer.stepping import CoreStep
from opdf_compile.training.optimizer.summary import Summary
from opdf_compile.training.optimizer.switching import switch, watch


class Overparam(SavedState):
    """A torch optimizer that steps the cores of a student's weights.

    Use it as the wrapped optimizer would be used. `param_groups` hold the student's parameters and
    their options, `W.grad` is what a clip or a log looks at and stays until it is cleared, and
    `opt.state[W]` shows the cores of W; all else that is kept of a step is in `opt.inner.state`. A
    student may move to another device until the first step. What it does not do is share W: after
    something else has written a weight (a checkpoint loaded alone, another optimizer), `step()`
    stops and says so.

    Args:
        params: The student, or its parameters, named or not, or param groups with the options that
            the wrapped optimizer takes.
        optimizer_class: The optimizer to wrap; any callable that makes one.
        plan: What is over-parameterised; or ask for it with one of the next two.
        cores: Cores per weight; 3 if nothing is asked for. What weights see of a batch is not known
            before the first forward: give `plan=opdf.plan(opdf.trace(student, (batch,)))` for one
            that a step can pay for.
        scale: Training parameters over deployed parameters.
        module: The student, where `params` are parameters or groups and `plan` does not know it (it
            was read from a file, or made for a copy).
        decay: "weight": `weight_decay` is plain decoupled decay of W, whatever the wrapped
            optimizer makes of it otherwise, at the step size that it finds where it finds one.
            "cores": the wrapped optimizer decays the cores.
            Weights whose method holds a norm (md, hyperball) do not decay by "weight". Parameters
            that are not planned decay as the wrapped optimizer does it.
        batched: Compose weights of one form together; "auto" takes the small ones, and only for
            optimizers that work entry by entry. A batch is taken apart when only some of its
            weights have a gradient.
        recompute: Save the memory of the intermediate products at the cost of making them again;
            the last product of each weight is not.
        process_group: Share cores and their optimizer state out over these ranks.
        alignment: A loss that draws the cores towards a teacher's, added once per step; it costs
            no forward, and no clip sees it. See `opdf.CoreAlignment`.
        progress: Called with (weight, number done, number of weights) before each decomposition.
        **options: Options of the wrapped optimizer.

    Attributes:
        program: The weight program.
        inner: The wrapped optimizer.
        plan: What is over-parameterised.
        alignment: What draws the cores towards a teacher's, or None.

    Raises:
        PlanError: The plan does not fit the student or the groups.
        InputError: The arguments contradict each other, or the wrapped optimizer refuses the cores.

    Example:
        >>> import torch, opdf_compile as opdf
        >>> student = torch.nn.Linear(16, 16)
        >>> opt = opdf.Overparam(student, torch.optim.AdamW, lr=1e-3, cores=3)
        >>> student(torch.randn(2, 16)).sum().backward()
        >>> opt.step(); opt.zero_grad()
    """

    def __init__(
        self,
        params: Any,
        optimizer_class: Callable[..., Optimizer] = torch.optim.AdamW,
        *,
        plan: Plan | None = None,
        cores: int | None = None,
        scale: float | None = None,
        module: nn.Module | None = None,
        decay: Literal["weight", "cores"] = "weight",
        batched: Batched = "auto",
        recompute: bool = False,
        process_group: Any = None,
        alignment: Alignment | None = None,
        progress: Callable[[str, int, int], None] | None = None,
        **options: Any,
    ) -> None:
        """Decompose the weights and build the wrapped optimizer over the cores."""
        student = student_behind(params, module, plan)
        reshard(student)  # Before its parameters are listed: unsharded ones are other objects.
        groups = outer_groups(params)
        probed = probe(optimizer_class, options, groups)
        shown = probed.shown(options, groups)
        require_shareable(process_group, optimizer_class)
        require_alignable(alignment, optimizer_class)
        if decay not in ("weight", "cores"):
            raise InputError(f"decay is {decay!r}, wanted 'weight' or 'cores'")
        home = homes(groups, student)
        self.plan = plan_of(student, plan, cores, scale, home)
        self._split = decay == "weight" and probed.decays
        owned = dict(student.named_parameters(remove_duplicate=False))
        weights = {entry.key: id(owned[entry.key]) for entry in self.plan.entries}
        self._place_of: GroupPlaces = {key: home[weight] for key, weight in weights.items()}
        matched = set(weights.values())
        self._by_entry = class_of(optimizer_class) in ELEMENTWISE
        self._rule = (
            decay_rule_of(optimizer_class, options, groups, probed)
            if self._split
            else DecayRule.RATE
        )
        self._require_decay(shown, class_name(optimizer_class))
        self.facts = facts_of(self.plan, optimizer_class, options, shown)
        cored = {weights[entry.key] for entry in self.plan.entries if not entry.metric}
        require_others(optimizer_class, options, groups, cored, student)
        if self._split and not self._by_entry:
            warn_of_halves(optimizer_class, options, halved(groups, shown, matched))
        if alignment is not None:
            alignment.check(self.plan, student)
        self.program: WeightProgram = hoist(
            student,
            self.plan,
            batched=batching_of(batched, optimizer_class),
            recompute=recompute,
            process_group=process_group,
            progress=progress,
            separate=self._place_of.__getitem__,
            matrices=probed.matrices,
        )
        self.program.of_overparam = True  # What their methods do around a step is in `CoreStep`.
        self.alignment = alignment
        if alignment is not None:
            alignment.attach(self.program)
        self._aside = {}
        self._links = self._laid_out(groups, self._place_of, self._whole(shown))
        self._make = functools.partial(optimizer_class, **options)
        self.inner = self.program.ranks.together(
            lambda: build_inner(optimizer_class, self._links.inner, options)
        )
        super().__init__(shown, dict(self.inner.defaults))
        self._links.adopt(self.param_groups, self.inner.param_groups)
        watch(self.inner, self._follow_switch)
        self._names = ParameterNames(student)
        self._laid = self._as_laid()
        self._show_cores()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of the wrapped optimizer on the cores, and the weights that come of it.

        Args:
            closure: Evaluates the loss and its gradients anew; optimizers that evaluate more than
                once (LBFGS) see the weights of the cores as they are at each evaluation.

        Raises:
            WeightsChanged: Something else changed the weights since the last step; nothing moves.
        """
        if closure is None and self._needs_closure:
            raise InputError(
                f"{type(self.inner).__name__} evaluates the loss by itself, found step() without a "
                "closure; call step(closure), where closure() clears the gradients, computes the "
                "loss, calls its backward() and returns it"
            )
        # Replaced before changed: another Parameter has other bits too.
        self._follow_parameters()
        self._require_decay(self.param_groups, type(self.inner).__name__)
        self.matched()
        self._follow()
        self._links.push(self.param_groups, self.inner.param_groups)
        early = closure is not None and self._early
        loss = CoreStep(self, self.decay_factor, early=early).run(closure)
        self._links.show(self.param_groups, self.inner.param_groups)
        return loss

    @functools.cached_property
    def _needs_closure(self) -> bool:
        return needs_closure(self.inner)

    @functools.cached_property
    def _early(self) -> bool:
        return moves_early(self._make, self.inner)

    def _follow(self) -> None:
        """Take the cores to where the student has gone since it was built, as `prepare` does.

        As with any optimizer, that must come before the first step: afterwards there is state.
        """
        for unit in self.program.units:
            if not self._keeps([unit]):
                unit.follow()

    def _require_decay(self, groups: list[Group], name: str) -> None:
        if not self._split:
            return
        decaying = [group for group in groups if decays(group)]
        if decaying:
            require_multilinear(self.plan)
            require_rule(self._rule, name)
        if self._rule is DecayRule.RATE and any(group.get("lr") is None for group in decaying):
            raise InputError(
                "weight_decay is not 0 and its group has no learning rate to scale it by, wanted "
                "a number; give decay='cores', which leaves decay to the wrapped optimizer"
            )

    def decay_factor(self, key: str) -> float:
        """What decay takes a weight times in this step."""
        place = self._place_of[key]
        if place is None or self._rule is DecayRule.OWN:
            return 1.0
        group = self.param_groups[place]
        if not self._split or not decays(group):
            return 1.0
        return 1.0 - float(group["lr"]) * float(group["weight_decay"])

    def train(self) -> None:
        """Put the wrapped optimizer into its training mode, and W where its cores are then.

        Some optimizers (schedule-free ones) train one point and evaluate another; of any other
        there is nothing to do.

        Raises:
            WeightsChanged: Cores moved, and something else had changed the weights.
        """
        switch(self.inner, "train")

    def eval(self) -> None:
        """Put the wrapped optimizer into its evaluation mode, and W where its cores are then.

        What is evaluated, folded and exported after it is that point; see `train`.

        Raises:
            WeightsChanged: Cores moved, and something else had changed the weights.
        """
        switch(self.inner, "eval")

    def _follow_switch(self, mode: str) -> None:
        """Write W after the wrapped optimizer has gone to a mode, and show its options."""
        units = self.program.units
        # One that moves parameters by ways that do not count has something to move to by then.
        kept = self._keeps(units)
        # Ranks that share the program send together, whatever each of them holds.
        switched = mode != self._mode and (kept or self.program.process_group is not None)
        if switched or any(unit.moved for unit in units):
            self.program.require_unchanged(self.held())
            self.program.write(self.held())
        self._mode = mode
        self._links.show(self.param_groups, self.inner.param_groups)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of the weights and of the cores."""
        super().zero_grad(set_to_none)
        self.inner.zero_grad(set_to_none)

    def fold(self, source: FoldSource | None = None, into: nn.Module | None = None) -> nn.Module:
        """The student with plain weights; see `opdf.fold`."""
        self._follow_parameters()
        return self.program.fold(source, into)

    def summary(self) -> Summary:
        """What is trained, what is deployed, what is left alone, and what a step costs."""
        matched = {entry.key for entry in self.plan.entries}
        named = {
            id(p): (self._name(p), p.numel())
            for group in self.param_groups
            for p in group["params"]
            if p.requires_grad
        }
        prefixes = branch_prefixes(self.plan)
        beside = sum(size for name, size in named.values() if name.startswith(prefixes))
        other = sum(size for name, size in named.values() if name not in matched) - beside
        decayed = "the cores" if "weight_decay" in self.defaults else "nothing"
        program, units = self.program, self.program.units
        return Summary(
            plan=self.plan,
            optimizer=type(self.inner).__name__,
            other=other,
            beside=beside,
            units=(len(units), sum(unit.batched for unit in units)),
            decay="W" if self._split else decayed,
            recompute=program.recompute,
            rank=(program.ranks.rank, program.ranks.size),
            held=sum(core.numel() for unit in units for core in unit.trained),
        )


def overparam_class(
    student: nn.Module,
    plan: Plan | None = None,
    optimizer_class: Callable[..., Optimizer] = torch.optim.AdamW,
    **options: Any,
) -> type[Overparam]:
    """An Overparam bound to a student, to be built from param groups alone.

    Args:
        student: What is trained.
        plan: What is over-parameterised; the default plan if None.
        optimizer_class: The optimizer to wrap.
        **options: Options of `Overparam` or of the wrapped optimizer; the call may override them.

    Returns:
        A class whose instances are made as ``cls(params_or_groups, lr=..)``.

    Example:
        >>> import torch, opdf_compile as opdf
        >>> student = torch.nn.Linear(16, 16)
        >>> made = opdf.overparam_class(student, opdf.plan(student))
        >>> opt = made(student.parameters(), lr=2e-5)
    """
    unwrap(student)

    class BoundOverparam(Overparam):
        """An Overparam of one student."""

        def __init__(self, params: Any, **given: Any) -> None:
            merged = {"plan": plan, "module": student, **options, **given}
            super().__init__(params, optimizer_class, **merged)

    # Trainers and logs print the class's name.
    BoundOverparam.__name__ = BoundOverparam.__qualname__ = (
        f"Overparam{class_name(optimizer_class)}"
    )
    return BoundOverparam
