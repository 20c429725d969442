"""One optimizer step: what `distill`, `advise` and the demo train with.

    for each batch of the step      forward, losses, backward of this batch's part of the objective
    once                            clip, step, clear, average the weights

What a step does depends on its number, on the states of the setup and of the source of its
batches, on the random number generators, and on nothing else: so a run can be taken up between any
two steps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from opdf_compile.distill.engine.batch_source import BatchSource, DataBatches
from opdf_compile.distill.engine.objective import Divisors, Objective, weighted
from opdf_compile.distill.engine.schedule import set_rates, share_of_peak
from opdf_compile.distill.engine.setup import Setup
from opdf_compile.distill.engine.teaching import Teaching
from opdf_compile.distill.engine.written import WrittenBatches
from opdf_compile.training import Overparam


@dataclass(frozen=True)
class Processes:
    """The processes that share a step, as seen from one of them.

    Attributes:
        rank: This one, from 0 on.
        size: How many there are.
        add_up: A vector's sum over all of them.
        wrap: Makes the objective's gradients travel between them.
    """

    rank: int = 0
    size: int = 1
    add_up: Callable[[Tensor], Tensor] = lambda vector: vector
    wrap: Callable[[Objective], nn.Module] = lambda objective: objective


class TrainingStep:
    """Takes the steps of one training, each by its number.

    Attributes:
        scaler: Of float16's gradients.
        source: Where the batches come from.
    """

    def __init__(
        self, setup: Setup, teaching: Teaching, processes: Processes | None = None
    ) -> None:
        self._setup, self._teaching, self._recipe = setup, teaching, setup.job.recipe
        self._processes = processes or Processes()
        both = setup.online, setup.job.augmentation
        self._objective = self._processes.wrap(
            Objective(setup.student, setup.losses, setup.job.forward, *both)
        ).train()
        self._divisors = Divisors(setup.losses.terms, self._processes.add_up)
        self._trained = [*setup.student.parameters(), *setup.beside]
        self.scaler = setup.machine.scaler()
        source = DataBatches if setup.job.recipe.generation is None else WrittenBatches
        self.source: BatchSource = source(setup, self._processes.rank, self._processes.size)

    def __call__(self, number: int, *, stop: bool = False) -> tuple[dict[str, Tensor], bool]:
        """Take a step; all processes together.

        Args:
            number: From 0 on.
            stop: Whether this process was told to stop.

        Returns:
            This process's part of each loss before its weight, and whether any process was told.
        """
        setup, processes = self._setup, self._processes
        schedule = self._recipe.schedule.kind
        share = share_of_peak(number, setup.steps, schedule, setup.warmup)
        for optimizer in setup.optimizers:
            set_rates(optimizer, share)
        drawn = self.source.batches(number)
        batches = [
            setup.looked_at_twice(batch, number, place, processes.rank)
            for place, (batch, _indices) in enumerate(drawn)
        ]
        parts: dict[str, Tensor] = {}
        divisors: dict[str, float] = {}
        told = False
        for place, batch in enumerate(batches):
            teacher = self._teaching.both("train", drawn[place].indices, batch)
            with self._travelling(last=place == len(batches) - 1):
                with setup.machine.autocast():
                    pieces = self._objective(batch, teacher)
                if not divisors:
                    # Counts are known after a forward only. Whether to stop travels along with
                    # them, so that all processes stop after the same step and none waits.
                    divisors, told = self._divisors(pieces, batches, stop)
                total = weighted(pieces, setup.losses.weights, divisors)
                # DDP averages the gradients over the processes; the divisors count all of them.
                self.scaler.scale(total * processes.size).backward()  # type: ignore[no-untyped-call]
            for name, (value, _) in pieces.items():
                parts[name] = parts.get(name, 0.0) + value.detach().double() / divisors[name]
        if number == 0:
            self._start_along_gradient()
        self._apply()
        return parts, told

    def _travelling(self, *, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Gradients travel between processes once per step.

        DDP decides in the forward what the backward after it does, so this is around both.
        """
        if last or not isinstance(self._objective, DistributedDataParallel):
            return contextlib.nullcontext()
        quiet: contextlib.AbstractContextManager[Any] = self._objective.no_sync()
        return quiet

    def _start_along_gradient(self) -> None:
        """Cores that can begin along the first gradient (delta) do, unless it overflowed."""
        setup = self._setup
        if not isinstance(setup.optimizer, Overparam) or setup.plan is None:
            return
        gradients = [p.grad for p in setup.student.parameters() if p.grad is not None]
        if any(entry.by.seeds for entry in setup.plan.entries) and all(
            bool(gradient.isfinite().all()) for gradient in gradients
        ):
            setup.optimizer.seed()

    def _apply(self) -> None:
        """Clip, step, clear, average."""
        setup, scaler, clip = self._setup, self.scaler, self._recipe.training.clip
        if clip is not None:
            # The norm is of the gradients themselves, and of dL/dW where cores make a weight: an
            # Overparam takes W.grad to its cores only as it steps.
            for optimizer in setup.optimizers:
                scaler.unscale_(optimizer)
            # One norm over all that the objective trains, projections too: the step keeps the
            # direction of the gradient, and a loss that jumps cannot run away with a projection.
            nn.utils.clip_grad_norm_(self._trained, clip)
        for optimizer in setup.optimizers:
            scaler.step(optimizer)
            optimizer.zero_grad()
        scale = scaler.get_scale()
        scaler.update()
        # A scale that falls tells that a gradient overflowed and the step was left out.
        if setup.average is not None and scaler.get_scale() >= scale:
            setup.average.update_parameters(setup.student)
