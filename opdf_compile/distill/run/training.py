"""The loop: steps, validations, checkpoints; it can be taken up between any two steps."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from opdf_compile.distill.engine import Evaluation, Setup, Teaching, TrainingStep
from opdf_compile.distill.run.accelerator import added_up, processes
from opdf_compile.distill.run.counters import Counters
from opdf_compile.distill.run.events import Saved, Stepped, Validated, Watch
from opdf_compile.distill.run.folder import Log, RunFolder
from opdf_compile.distill.run.interrupts import stoppable
from opdf_compile.distill.run.saving import Saving
from opdf_compile.errors import RunInterrupted, UserError

if TYPE_CHECKING:
    from accelerate import Accelerator

# Lines of steps in the log of a run, at most about.
_LOGGED = 500


class Training:
    """One run's training."""

    def __init__(
        self,
        setup: Setup,
        accelerator: Accelerator,
        teaching: Teaching,
        folder: RunFolder,
        watch: Watch,
    ) -> None:
        job = setup.job
        self._job, self._setup, self._accelerator = job, setup, accelerator
        self._folder, self._watch = folder, watch
        self._first = bool(accelerator.is_main_process)  # Which writes and tells.
        self._step = TrainingStep(setup, teaching, processes(accelerator, setup, teaching))
        self.evaluation = Evaluation(job, setup.batches, teaching)
        self.saving = Saving(setup, self._step.scaler, self._step.source)
        self._writing = 0.0  # Seconds of writing that the log knows of.
        self.progress = Counters()

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
        self._log = Log(self._folder.log, self.progress.step) if self._first else None
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

    def _one_step(self, stop: threading.Event) -> bool:
        """A step and what is due after it; whether any process was told to stop."""
        due = self._due(self.progress.step + 1)
        parts, told = self._step(self.progress.step, stop=stop.is_set())
        self.progress.step += 1
        if any(due.values()):
            self._report(self._summed(parts), log=due["log"] or due["validate"])
            self._report_source()
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

    def _summed(self, parts: Mapping[str, Tensor]) -> dict[str, float]:
        """Each loss over all processes."""
        vector = added_up(self._accelerator, torch.stack(list(parts.values())))
        return dict(zip(parts, vector.tolist(), strict=True))

    def _report(self, parts: Mapping[str, float], *, log: bool) -> None:
        loss, step = self._setup.loss(parts), self.progress.step
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

    def _report_source(self) -> None:
        """What the student wrote so far, and the seconds of it since the last such line."""
        source = self._step.source
        state = source.state()
        if self._log is None or not state:
            return
        seconds, self._writing = source.seconds - self._writing, source.seconds
        entry = {"event": "generation", "step": self.progress.step, **state}
        self._log.write({**entry, "seconds": round(seconds, 6)})

    def _validate(self) -> None:
        if not len(self._job.data.validation):
            return
        metric, training = self._job.metric, self._job.recipe.training
        value = self.evaluation.of(self._setup.measured, "validation")
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
        if path is not None and self._first:
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
