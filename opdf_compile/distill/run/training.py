"""The loop: steps, validations, checkpoints; it can be taken up between any two steps.

What a step does depends on its number and on what a checkpoint holds, and on nothing else.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from opdf_compile.distill.recipe.job import Job
from opdf_compile.distill.run.building import Setup, unused_parameters
from opdf_compile.distill.run.evaluating import Evaluation, evaluating
from opdf_compile.distill.run.events import Saved, Stepped, Validated, Watch
from opdf_compile.distill.run.folder import Log, RunFolder
from opdf_compile.distill.run.interrupts import Stop, stoppable
from opdf_compile.distill.run.machine import added_up
from opdf_compile.distill.run.objective import Divisors, Objective, weighted
from opdf_compile.distill.run.order import shard
from opdf_compile.distill.run.saving import Saving
from opdf_compile.distill.run.schedule import set_rates, share_of_peak
from opdf_compile.distill.run.state import Progress
from opdf_compile.distill.run.teaching import Teaching
from opdf_compile.errors import RunInterrupted, UserError

if TYPE_CHECKING:
    from accelerate import Accelerator

# Lines of steps in the log of a run, at most about.
_LOGGED = 500


class Training:
    """One run's training.

    Args:
        job: What is trained.
        setup: With what.
        accelerator: On what.
        teaching: The teacher's outputs.
        folder: Where checkpoints and log go.
        watch: Is told what happens; only in the first process.
    """

    def __init__(
        self,
        job: Job,
        setup: Setup,
        accelerator: Accelerator,
        teaching: Teaching,
        folder: RunFolder,
        watch: Watch,
    ) -> None:
        self._job, self._setup, self._accelerator = job, setup, accelerator
        self._teaching, self._folder, self._watch = teaching, folder, watch
        self._objective = self._prepared(Objective(setup.student, setup.losses, job.forward))
        self._divisors = Divisors(setup.losses.terms, lambda v: added_up(accelerator, v))
        self.evaluation = Evaluation(job.metric, setup.batches, job.recipe.data.batch, teaching)
        self._optimizer = accelerator.prepare_optimizer(setup.optimizer)
        self.saving = Saving(setup, accelerator)
        self.progress = Progress()

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and tells."""
        return bool(self._accelerator.is_main_process)

    def resume(self) -> None:
        """Take the run up at its newest checkpoint, if there is one."""
        found = self.saving.load(self._folder.checkpoints)
        if found is not None:
            self.progress = found

    def run(self) -> None:
        """Train to the end.

        Raises:
            RunInterrupted: Told to stop; where the run was is saved.
            UserError: The loss is no number any more.
        """
        self._log = Log(self._folder.log, self.progress.step) if self.first else None
        self._started = time.perf_counter()
        with stoppable() as stop:
            while not self._done():
                if self._one_step(stop) and not self._done():
                    self._save()
                    raise RunInterrupted(self._how_to_go_on())
        if not self.progress.kept_step:
            self.saving.keep(self.progress)
        self._save()

    def _done(self) -> bool:
        return self.progress.stopped or self.progress.step >= self._setup.steps

    def _prepared(self, objective: Objective) -> nn.Module:
        accelerator = self._accelerator
        if accelerator.num_processes > 1:
            from accelerate.utils import DistributedDataParallelKwargs

            batch = self._setup.batches.moved(self._job.example)
            teacher = None
            if self._setup.teacher is not None:
                with torch.no_grad():
                    teacher = self._job.forward(self._setup.teacher, batch)
            unused = unused_parameters(self._setup, objective, teacher, batch)
            accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=unused)
        prepared: nn.Module = accelerator.prepare_model(objective)
        return prepared

    def _one_step(self, stop: Stop) -> bool:
        """A step and what is due after it; whether any process was told to stop."""
        due = self._due(self.progress.step + 1)
        parts, told = self._update(stop)
        self.progress.step += 1
        if any(due.values()):
            self._report(self._summed(parts), log=due["log"] or due["validate"])
        if due["validate"]:
            self._validate()
        if due["save"]:
            self._save()
        return told

    def _due(self, step: int) -> dict[str, bool]:
        """What follows the step of this number (from 1 on)."""
        training, setup = self._job.recipe.training, self._setup
        each = setup.order.steps_per_epoch
        last = step == setup.steps
        logged = max(1, setup.steps // _LOGGED)
        return {
            "log": last or step % logged == 0,
            "validate": last or step % (training.evaluate_every or each) == 0,
            "save": not last and step % (training.checkpoint_every or each) == 0,
        }

    def _update(self, stop: Stop) -> tuple[dict[str, Tensor], bool]:
        """One optimizer step; this process's part of each loss, and whether to stop."""
        setup, accelerator, step = self._setup, self._accelerator, self.progress.step
        self._objective.train()
        self._set_rates(step)
        rank, ranks = accelerator.process_index, accelerator.num_processes
        indices = [shard(batch, rank, ranks) for batch in setup.order.batches(step)]
        batches = [setup.batches.of(self._job.data.train, some) for some in indices]
        parts: dict[str, Tensor] = {}
        divisors: dict[str, float] = {}
        told = False
        for place, batch in enumerate(batches):
            teacher = self._teaching("train", indices[place], batch)
            with self._travelling(last=place == len(batches) - 1):
                pieces = self._objective(batch, teacher)
                if not divisors:
                    divisors, told = self._divisors(pieces, batches, bool(stop))
                total = weighted(pieces, setup.losses.weights, divisors)
                # DDP averages the gradients over the processes; the divisors count all of them.
                accelerator.backward(total * ranks)
            for name, (value, _) in pieces.items():
                parts[name] = parts.get(name, 0.0) + value.detach().double() / divisors[name]
        self._apply()
        return parts, told

    def _travelling(self, *, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Gradients travel between processes once per step."""
        if last:
            return contextlib.nullcontext()
        quiet: contextlib.AbstractContextManager[Any] = self._accelerator.no_sync(self._objective)
        return quiet

    def _apply(self) -> None:
        """Clip, step, clear, average."""
        setup, accelerator = self._setup, self._accelerator
        clip = self._job.recipe.training.clip
        if clip is not None:
            accelerator.clip_grad_norm_(setup.student.parameters(), clip)
        scale = 1.0 if accelerator.scaler is None else accelerator.scaler.get_scale()
        self._optimizer.step()
        if setup.side is not None:
            _step_unscaled(setup.side, scale)
            setup.side.zero_grad()
        self._optimizer.zero_grad()
        if setup.average is not None and not accelerator.optimizer_step_was_skipped:
            setup.average.update_parameters(setup.student)

    def _set_rates(self, step: int) -> None:
        schedule = self._job.recipe.schedule
        share = share_of_peak(step, self._setup.steps, schedule.kind, schedule.warmup)
        for optimizer in (self._setup.optimizer, self._setup.side):
            if optimizer is not None:
                set_rates(optimizer, share)

    def _summed(self, parts: Mapping[str, Tensor]) -> dict[str, float]:
        """Each loss over all processes."""
        vector = added_up(self._accelerator, torch.stack(list(parts.values())))
        return dict(zip(parts, vector.tolist(), strict=True))

    def _report(self, parts: Mapping[str, float], *, log: bool) -> None:
        weights, step = self._setup.losses.weights, self.progress.step
        loss = sum(weights[name] * value for name, value in parts.items())
        if not abs(loss) < float("inf"):
            raise UserError(
                f"the loss is {loss} after step {step}, wanted a number: training has diverged; "
                "lower [optimizer] lr, or give [training] clip"
            )
        if not log:
            return
        lr = float(self._setup.optimizer.param_groups[0]["lr"])
        event = Stepped(step, self._epoch(), loss, dict(parts), lr, self._seconds())
        self._told("step", event, {"loss": loss, "lr": lr, "parts": dict(parts)})
        values = {"loss": loss, "lr": lr, **{f"loss/{n}": v for n, v in parts.items()}}
        self._accelerator.log(values, step=step)

    def _validate(self) -> None:
        if not len(self._job.data.validation):
            return
        setup, metric, training = self._setup, self._job.metric, self._job.recipe.training
        average = None if setup.average is None else setup.average.module
        with evaluating(setup.student if average is None else average) as model:
            value = self.evaluation(lambda b: self._job.forward(model, b), "validation")
        progress = self.progress
        if math.isnan(value):
            raise UserError(
                f"the {metric.name} on the validation part is nan after step {progress.step}, "
                "wanted a number: either no example counts (every label is -100, or a mask is 0 "
                "everywhere), or the student's outputs are no numbers any more; look at the "
                "labels, or lower [optimizer] lr"
            )
        if progress.note(value, higher_is_better=metric.higher_is_better):
            self.saving.keep(progress)
        patience = training.early_stopping
        progress.stopped = patience is not None and progress.stale >= patience
        left = None if patience is None else patience - progress.stale
        best = (progress.best, progress.best_step)
        event = Validated(progress.step, self._epoch(), value, *best, left)
        self._told("validation", event, {metric.name: value, "best": best[0]})
        self._accelerator.log({f"validation/{metric.name}": value}, step=progress.step)

    def _save(self) -> None:
        path = self.saving.save(self._folder.checkpoints, self.progress, self._job.recipe.training)
        if path is not None and self.first:
            self._watch(Saved(self.progress.step, path))

    def _told(self, name: str, event: Stepped | Validated, values: dict[str, Any]) -> None:
        if self._log is None:
            return
        start = {"event": name, "step": self.progress.step, "epoch": self._epoch()}
        self._log.write({**start, **values, "seconds": round(self._seconds(), 3)})
        self._watch(event)

    def _epoch(self) -> float:
        return self.progress.step / self._setup.order.steps_per_epoch

    def _seconds(self) -> float:
        return time.perf_counter() - self._started

    def _how_to_go_on(self) -> str:
        return (
            f"stopped after step {self.progress.step} of {self._setup.steps}, which is saved in "
            f"{self._folder.path}; give the same command again and it goes on from there"
        )


def _step_unscaled(side: torch.optim.Optimizer, scale: float) -> None:
    """A step on gradients that were scaled for float16; none where one overflowed."""
    parameters = [p for group in side.param_groups for p in group["params"] if p.grad is not None]
    for parameter in parameters:
        parameter.grad.div_(scale)
    if all(bool(torch.isfinite(parameter.grad).all()) for parameter in parameters):
        side.step()
