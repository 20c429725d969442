"""`opdf-compile distill`: the whole job of a recipe."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opdf_compile.cli import options as o
from opdf_compile.cli.formats import dimensions, table
from opdf_compile.cli.loading import load_job
from opdf_compile.cli.terminal import Terminal, opened
from opdf_compile.errors import InputError, RunInterrupted, UserError

if TYPE_CHECKING:
    from rich.table import Table
    from torch import nn

    from opdf_compile.distill.recipe import Job
    from opdf_compile.distill.run import RunResult
    from opdf_compile.planning import Plan

_LOG = logging.getLogger("opdf_compile")
NAME = "distill"
EXAMPLES = (
    "$ opdf-compile distill --init digits.toml\n\n"
    "$ opdf-compile distill digits.toml -o digits-run\n\n"
    "$ accelerate launch --multi_gpu --num_processes 2 -m opdf_compile distill digits.toml"
)


def command(
    recipe: Annotated[
        Path,
        typer.Argument(metavar="RECIPE.toml", help="What is trained, and how.", show_default=False),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            metavar="DIR",
            help="The run's folder; RECIPE-run by default. A run that was interrupted goes on.",
            show_default=False,
        ),
    ] = None,
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh/--resume", help="Refuse a folder that holds a run, or go on with that run."
        ),
    ] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check", "--dry-run", help="Load and check everything, print the plan, and stop."
        ),
    ] = False,
    init: Annotated[
        bool, typer.Option("--init", help="Write a recipe that runs, and stop.")
    ] = False,
    json: o.Json = None,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    debug: o.Debug = False,
) -> int:
    """Distil a student as a recipe says: train, fold, export, verify.

    Writes a run folder: the bundle, a report with plots, the log, checkpoints, and a lock file.
    """
    first = _rank() == 0
    with opened(
        json if first else None, quiet=quiet or not first, verbose=verbose, debug=debug
    ) as terminal:
        if init:
            return _init(terminal, recipe, check=check)
        try:
            job = load_job(terminal, recipe)
        except UserError as error:
            # All processes find the same mistake; one sentence is enough.
            if first:
                raise
            return error.exit_code
        plan = _shown(terminal, job)
        if check:
            _require_ready(job)
            _warn_of_the_teacher(terminal, job)
            terminal.show(f"{recipe} can run; nothing was trained")
            terminal.result(_checked(recipe, job, plan))
            return 0
        return _run(terminal, recipe, job, out or Path(f"{recipe.stem}-run"), fresh=fresh)


def _require_ready(job: Job) -> None:
    """Refuse what the run itself would refuse before its first step."""
    from opdf_compile.distill.run import require_accelerate, require_machine, require_runtime

    require_accelerate()
    require_runtime(job)
    require_machine(job.recipe.training)


def _warn_of_the_teacher(terminal: Terminal, job: Job) -> None:
    from opdf_compile.distill.recipe import teacher_at_chance

    with terminal.busy("asking the teacher"):
        found = teacher_at_chance(job)
    if found is not None:
        terminal.warn(found)


def _rank() -> int:
    """This process's place among those of accelerate launch or torchrun."""
    text = os.environ.get("RANK", "0")
    return int(text) if text.isdigit() else 0


def _init(terminal: Terminal, recipe: Path, *, check: bool) -> int:
    from opdf_compile.distill.recipe import write_template

    if check:
        raise InputError("--init writes a recipe and --check reads one, wanted one of them")
    write_template(recipe)
    terminal.show(f"Wrote {recipe}", f"  opdf-compile distill {recipe}   runs it")
    terminal.result({"schema": "opdf-distill-init/1", "recipe": str(recipe)})
    return 0


def _shown(terminal: Terminal, job: Job) -> Plan | None:
    """Print what will be trained; the plan of it."""
    with terminal.busy("planning"):
        student = job.make_student(job.recipe.training.seed)
        plan = job.plan(student)
    terminal.show(job_table(job))
    if job.layer_map is not None:
        terminal.show(layer_table(job, student))
    if plan is None:
        terminal.show("plain: the student trains as it is", "")
    else:
        from opdf_compile.cli.plan import plan_table

        terminal.show(plan_table(plan), plan.totals(), "")
    for note in job.notes:
        _LOG.warning("%s", note)  # The run says them again to who did not hear them here.
    return plan


def job_table(job: Job) -> Table:
    """What a recipe became, in a dozen rows."""
    recipe, data = job.recipe, job.data
    rows = table("Recipe", "what", "value")
    rows.add_row("student", recipe.student.model)
    rows.add_row("teacher", recipe.teacher.model if recipe.teacher else "none")
    sizes = (
        f"{len(data.train):,} train, {len(data.validation):,} validation, {len(data.test):,} test"
    )
    rows.add_row("data", f"{data.source}: {sizes}")
    rows.add_row("inputs", ", ".join(data.inputs) + (f"; {data.labels}" if data.labels else ""))
    rows.add_row(
        "losses", ", ".join(f"{loss.weight:g} x {loss.name or loss.kind}" for loss in recipe.loss)
    )
    length = recipe.training
    many = f"{length.epochs} epochs" if length.epochs else f"{length.steps} steps"
    times = "" if length.accumulation == 1 else f" x {length.accumulation}"
    rows.add_row("training", f"{many} of batch {recipe.data.batch}{times}, {length.precision}")
    rate = f"lr {recipe.optimizer.lr:g}"
    rows.add_row("optimizer", f"{recipe.optimizer.name}, {rate}, {recipe.schedule.kind}")
    rows.add_row("metric", job.metric.name)
    return rows


def layer_table(job: Job, student: nn.Module) -> Table:
    """Which of the teacher's weights belongs to which of the student's."""
    made = table("Layer map", "student", "shape", "teacher", "shape")
    ours = dict(student.named_parameters(remove_duplicate=False))
    assert job.teacher is not None
    theirs = dict(job.teacher.named_parameters(remove_duplicate=False))
    for mine, other in job.layer_map or ():
        made.add_row(mine, dimensions(ours[mine].shape), other, dimensions(theirs[other].shape))
    return made


def _checked(recipe: Path, job: Job, plan: Plan | None) -> dict[str, Any]:
    data = job.data
    return {
        "schema": "opdf-distill-check/1",
        "recipe": str(recipe),
        "fingerprint": job.data.fingerprint,
        "examples": {
            "train": len(data.train),
            "validation": len(data.validation),
            "test": len(data.test),
        },
        "inputs": list(data.inputs),
        "labels": data.labels,
        "metric": job.metric.name,
        "layer_map": None if job.layer_map is None else [list(p) for p in job.layer_map.pairs],
        "plan": None if plan is None else plan.to_json(),
    }


def _run(terminal: Terminal, recipe: Path, job: Job, folder: Path, *, fresh: bool) -> int:
    from opdf_compile.cli.distill_live import watching
    from opdf_compile.distill.run import run

    try:
        with watching(terminal) as watch:
            result = run(job, folder, resume=not fresh, watch=watch)
    except KeyboardInterrupt as error:  # While the teacher's outputs or the export were made.
        raise RunInterrupted(
            f"interrupted, and {folder} keeps what was finished; give the same command again and "
            "it goes on"
        ) from error
    seen = f"on {len(job.data.test):,} test examples that no choice looked at"
    terminal.show(metric_table(job, result), seen)
    if result.verdict is not None:
        terminal.show(f"parity: {result.verdict.replace('_', ' ')}")
    found = "curves and metrics" if result.verdict is None else "curves, metrics and verdict"
    terminal.show(f"Wrote {folder}/", f"  {result.report}   {found}")
    terminal.show(f"  {result.weights}   the student's weights, for PyTorch and --weights")
    if result.bundle is not None:
        terminal.show(f"  {result.bundle}/   what ships")
    terminal.result(
        {
            "schema": "opdf-distill/1",
            "recipe": str(recipe),
            "folder": str(folder),
            "verdict": result.verdict,
            "metric": job.metric.name,
            "metrics": dict(result.metrics),
            "weights": str(result.weights),
            "bundle": None if result.bundle is None else str(result.bundle),
            "report": str(result.report),
            "steps": result.steps,
            "best_step": result.best_step,
            "fingerprint": job.data.fingerprint,
        }
    )
    return result.exit_code


def metric_table(job: Job, result: RunResult) -> Table:
    """The metric of each model on the test part."""
    value_head = f"test {job.metric.name}"
    made = table("Result", "model", value_head, numbers=(value_head,))
    for name, value in result.metrics.items():
        made.add_row(name, f"{value:.4f}")
    return made
