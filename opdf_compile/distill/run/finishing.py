"""The end of a run: the student that ships, its export, the verdict, the metric on the test."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from opdf_compile.artefacts import STUDENT, changed_files, is_bundle
from opdf_compile.distill.engine import Batches, Evaluation, Setup, exported_forward
from opdf_compile.distill.recipe import Job, placed
from opdf_compile.distill.run.events import Stage, Watch
from opdf_compile.distill.run.folder import RunFolder
from opdf_compile.errors import UserError
from opdf_compile.extras import requirements_of
from opdf_compile.io import export_onnx, require_opset, write_student
from opdf_compile.parity import ParityReport, verify

_LOG = logging.getLogger("opdf_compile")
LATENCY_PLOT = "latency.png"


def require_runtime(job: Job) -> None:
    """Refuse before training what could only be refused after it.

    Raises:
        UserError: The recipe asks for a verdict and onnxruntime is not installed, or for an opset
            that the export does not know.
    """
    recipe = job.recipe
    if recipe.export.enabled and recipe.export.opset is not None:
        with placed(recipe, "export", "opset"):
            require_opset(recipe.export.opset)
    asked = recipe.export.enabled and recipe.verify.enabled
    if asked and importlib.util.find_spec("onnxruntime") is None:
        raise UserError(
            "[verify] is enabled and onnxruntime is not installed; install it with pip install "
            f"{requirements_of('gpu')} (or onnxruntime), or write enabled = false under [verify]"
        )


@dataclass(frozen=True, eq=False)
class End:
    """What the finished student came to.

    Attributes:
        metrics: On the test part by model, in the order of the report.
        parity: The verdict on the bundle, or None.
        bundle: What ships, or None.
    """

    metrics: dict[str, float]
    parity: ParityReport | None
    bundle: Path | None


def finish(
    job: Job,
    setup: Setup,
    teacher: nn.Module | None,
    kept: Mapping[str, Tensor],
    evaluation: Evaluation,
    folder: RunFolder,
    watch: Watch,
) -> End:
    """Write the weights, export, verify and measure; in one process."""
    untouched = job.make_student(job.recipe.training.seed).eval()
    student = job.make_student(job.recipe.training.seed).eval()
    student.load_state_dict(dict(kept), strict=False)
    write_student(folder.weights, student.state_dict())
    bundle = None
    if job.recipe.export.enabled:
        watch(Stage("exporting student and reference", 0.0))
        bundle = _export(job, setup, student, untouched, folder)
        watch(Stage("exporting student and reference", 1.0))
    parity = _verify(job, bundle, watch) if bundle is not None else None
    models = {"untouched": untouched, "teacher": teacher, "student": student}
    metrics = _metrics(job, setup, models, bundle, evaluation, watch)
    return End(metrics, parity, bundle)


def _export(
    job: Job, setup: Setup, student: nn.Module, untouched: nn.Module, folder: RunFolder
) -> Path:
    """The bundle; one that a killed run has finished is taken as it is."""
    path, section = folder.bundle, job.recipe.export
    if path.is_dir() and is_bundle(path) and not changed_files(path):
        return path
    args, kwargs = job.data.arguments(job.example)
    return export_onnx(
        student,
        args,
        path,
        kwargs or None,
        reference=untouched,
        dynamic=None if job.dynamic is None else dict(job.dynamic),
        opset=section.opset,
        dtype=section.dtype,
        plan=None if setup.plan is None else setup.plan.to_json(),
    )


def _verify(job: Job, bundle: Path, watch: Watch) -> ParityReport | None:
    section = job.recipe.verify
    if not section.enabled:
        return None
    text = "verifying the bundle"
    watch(Stage(text, 0.0))
    report = verify(
        bundle,
        device=section.device,
        margin=section.margin,
        budget=section.budget,
        plot=bundle / LATENCY_PLOT,
        progress=lambda _what, share: watch(Stage(text, share)),
    )
    report.save_in_bundle(bundle)
    watch(Stage(text, 1.0))
    return report


def _metrics(
    job: Job,
    setup: Setup,
    models: Mapping[str, nn.Module | None],
    bundle: Path | None,
    evaluation: Evaluation,
    watch: Watch,
) -> dict[str, float]:
    if not len(job.data.test):
        return {}
    found: dict[str, float] = {}
    for place, (name, model) in enumerate(models.items()):
        watch(Stage("measuring on the test part", place / 4))
        if model is None:
            continue
        setup.machine.widened(model.to(setup.machine.device))
        try:
            found[name] = evaluation.of(model, "test", alone=True)
        except Exception as error:  # A metric of labels may not fit a teacher's outputs.
            if name != "teacher":
                raise
            _LOG.warning("the teacher has no %s: %s", job.metric.name, str(error)[:200])
    student = models["student"]
    exported = None
    if student is not None and bundle is not None:
        exported = _exported(job, setup.batches, student, bundle)
    if exported is not None:
        watch(Stage("measuring on the test part", 3 / 4))
        found["onnx"] = evaluation(exported, "test", alone=True)
    watch(Stage("measuring on the test part", 1.0))
    return found


def _exported(job: Job, batches: Batches, student: nn.Module, bundle: Path) -> Any:
    """The forward of the ONNX file, with the student's names of outputs; None without a runtime."""
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    if job.recipe.export.dtype not in (None, "fp32"):
        return None  # Its inputs have another dtype than the data.
    return exported_forward(job, batches, student, bundle / STUDENT)
