"""Expand, a few steps, fold, export: one bundle per model, several models at a time."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch
import torch.nn.functional as F

import opdf_compile as opdf
from exports.models import MODELS, first_tensor
from opdf_compile.errors import UserError

# A batch of two keeps the batch axis free; two steps move every weight.
_SAMPLES, _STEPS = 2, 2
_RATE = 1e-3

Progress = Callable[[str, float], None]


def export_all(
    names: Sequence[str],
    folder: Path,
    *,
    jobs: int,
    threads: int,
    seed: int,
    progress: Progress,
    executorch: bool = False,
) -> dict[str, str]:
    """Export the models that the folder does not hold yet.

    Args:
        names: Of `MODELS`.
        folder: Gets one bundle folder for each.
        jobs: Processes at work at a time.
        threads: Of torch, in each process.
        seed: Fixes weights and data.
        progress: Called with a sentence and the share that is done.
        executorch: Lower them to ExecuTorch, too; a bundle without that is exported again.

    Returns:
        What went wrong, a sentence by model; the others are there.
    """
    last = "reference/reference.pte" if executorch else "manifest.json"
    missing = [name for name in names if not (folder / name / last).exists()]
    failed: dict[str, str] = {}
    if not missing:
        return failed
    # A forked child of a process that has run torch would inherit locks that nobody releases.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs, len(missing)), mp_context=context) as pool:
        running = {
            pool.submit(export_one, name, folder, threads, seed, executorch): name
            for name in missing
        }
        for done, future in enumerate(as_completed(running), 1):
            name = running[future]
            error = future.exception()
            if error is not None:
                failed[name] = f"{type(error).__name__}: {error}"
            seconds = "failed" if error is not None else f"{future.result():.0f} s"
            progress(f"exported {name} ({seconds})", done / len(missing))
    return failed


def export_one(name: str, folder: Path, threads: int, seed: int, executorch: bool = False) -> float:
    """Write the bundle of one model; return seconds."""
    began = time.perf_counter()
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    model = MODELS[name]
    untouched = model.build().eval()
    example = model.batch(_SAMPLES)
    traced = opdf.trace(untouched, example)
    training = opdf.expand(traced, opdf.plan(traced, cores=3))
    _steps(training, model.batch)
    student = opdf.fold(training)
    place = folder / name
    try:
        opdf.export_onnx(student, example, place, reference=untouched, executorch=executorch)
    except UserError:
        if not executorch:
            raise
        # What cannot be lowered is ExecuTorch's matter alone, whose rows say that nothing is there.
        opdf.export_onnx(student, example, place, reference=untouched)
    return time.perf_counter() - began


def _steps(training: torch.nn.Module, batch: Callable[[int], dict[str, torch.Tensor]]) -> None:
    """Steps towards a random target, so that no weight is what it was."""
    optimizer = torch.optim.AdamW(training.parameters(), lr=_RATE)
    training.train()
    for _ in range(_STEPS):
        found = first_tensor(training(**batch(_SAMPLES)))
        F.mse_loss(found, torch.randn_like(found)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
