"""`run`: a prepared recipe, from the first step to the verified bundle."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opdf_compile.distill.engine import Machine, Teaching, set_up
from opdf_compile.distill.recipe import Job
from opdf_compile.distill.run.accelerator import (
    open_accelerator,
    require_accelerate,
    start_trackers,
)
from opdf_compile.distill.run.cache import cached_parts
from opdf_compile.distill.run.events import Finished, Started, Watch, silent
from opdf_compile.distill.run.finishing import End, finish, require_runtime
from opdf_compile.distill.run.folder import RunFolder, only_run, open_folder
from opdf_compile.distill.run.lock import lock_of
from opdf_compile.distill.run.run_report import read_result, write_report
from opdf_compile.distill.run.training import Training
from opdf_compile.io import RankGroup

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class RunResult:
    """What a run came to.

    Attributes:
        verdict: The parity verdict ("pass", "fail", "inconclusive"), "not_verified" where the
            recipe asks for none, None where it exports nothing.
        metrics: The metric on the test part by model: "untouched", "teacher", "student", "onnx".
        weights: The trained student's own, as a file.
        bundle: What ships, or None where the recipe exports nothing.
        report: The page with curves and metrics, and the verdict if there is one.
        folder: The run's folder.
        steps: Optimizer steps that were made.
        best_step: The step whose weights ship.
    """

    verdict: str | None
    metrics: Mapping[str, float]
    weights: Path
    bundle: Path | None
    report: Path
    folder: Path
    steps: int
    best_step: int

    @property
    def exit_code(self) -> int:
        """What the command line exits with: 1 where parity is refuted."""
        return 1 if self.verdict == "fail" else 0


def run(
    job: Job,
    folder: str | os.PathLike[str],
    *,
    resume: bool = True,
    watch: Watch | None = None,
) -> RunResult:
    """Train, fold, export and verify; a run that was interrupted goes on where it was.

    On one CPU thread the result has the same bits, however often it was interrupted. Under
    `accelerate launch` or torchrun every process calls it; the batch of the recipe is shared out
    over them.

    Args:
        job: A prepared recipe.
        folder: The run's folder, made if missing.
        resume: Go on with a run that the folder holds; False refuses such a folder.
        watch: Is told what happens, in the first process.

    Raises:
        ArtefactError: The folder holds other files, a damaged run, or the run of something else.
        RunInterrupted: Ctrl-C or SIGTERM; the run is saved, and the sentence says how to go on.
        UserError: The recipe asks for what is not there, or training diverged.

    Example:
        >>> job = prepare(read_recipe("digits.toml"))  # doctest: +SKIP
        >>> run(job, "digits-run").metrics["student"]  # doctest: +SKIP
        0.98
    """
    require_accelerate()
    require_runtime(job)
    path = Path(folder)
    accelerator = open_accelerator(job.recipe.training, path)
    ranks = RankGroup()
    tell = watch if watch is not None and ranks.rank == 0 else silent
    place = ranks.together(lambda: _opened(job, path, ranks, resume=resume))
    with contextlib.nullcontext() if ranks.rank else only_run(place):
        value = ranks.together(lambda: read_result(place))
        if value is None:
            value = _train(job, place, accelerator, ranks, tell)
        result = _result(value, place)
        tell(Finished(result.verdict, result.metrics, result.bundle, result.report))
    return result


def _opened(job: Job, path: Path, ranks: RankGroup, *, resume: bool) -> RunFolder:
    """The first process makes or checks the folder."""
    if ranks.rank:
        return RunFolder(path)
    lock = lock_of(job, job.make_student(job.recipe.training.seed))
    return open_folder(path, lock, job.recipe.text, resume=resume)


def _train(
    job: Job, place: RunFolder, accelerator: Accelerator, ranks: RankGroup, tell: Watch
) -> dict[str, Any]:
    """Train what is left, then finish in the first process; the value of the report."""
    from accelerate.utils import set_seed

    seed = job.recipe.training.seed
    machine = Machine(accelerator.device, job.recipe.training.precision)
    student = machine.widened(job.make_student(seed))
    setup = set_up(job, machine, student, job.plan(student), seed=seed)
    teaching = Teaching(job, machine.teacher(job.teacher), machine)
    cache, notes = cached_parts(setup, teaching, place, tell)
    teaching = Teaching(job, teaching.teacher, machine, cache)
    start_trackers(accelerator, job.recipe.model_dump(mode="json"))
    training = Training(setup, accelerator, teaching, place, tell)
    # After all that builds: what was built may have drawn random numbers, and a resumed run, which
    # builds again, takes those of its checkpoint.
    set_seed(seed, device_specific=True)
    training.resume()
    tell(
        Started(
            step=training.progress.step,
            steps=setup.steps,
            steps_per_epoch=setup.order.steps_per_epoch,
            device=str(accelerator.device),
            processes=accelerator.num_processes,
            metric=job.metric.name,
            higher_is_better=job.metric.higher_is_better,
            notes=(*job.notes, *notes),
        )
    )
    training.run()
    kept = training.saving.kept

    def end() -> dict[str, Any]:
        if ranks.rank:
            return {}
        found: End = finish(job, setup, teaching.teacher, kept, training.evaluation, place, tell)
        return write_report(job, setup, training.progress, found, place)

    value = ranks.gather(ranks.together(end))[0]
    accelerator.end_training()
    return value


def _result(value: Mapping[str, Any], place: RunFolder) -> RunResult:
    return RunResult(
        verdict=value["verdict"] if value["bundle"] else None,
        metrics=dict(value["test"]),
        weights=place.weights,
        bundle=place.bundle if value["bundle"] else None,
        report=place.page,
        folder=place.path,
        steps=value["steps"],
        best_step=value["kept_step"],
    )
