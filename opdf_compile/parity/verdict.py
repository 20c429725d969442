"""`verify`: structure, numerics and latency of an export, joined in one verdict."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from opdf_compile.artefacts import is_quantised
from opdf_compile.errors import InputError, UserError
from opdf_compile.parity.compared_files import ComparedFiles, find_files, require_reference
from opdf_compile.parity.folded.checks import fold_faults
from opdf_compile.parity.latency.latency_result import LatencyResult
from opdf_compile.parity.latency.measure import Progress, measure_latency
from opdf_compile.parity.metric.checking import check_metric
from opdf_compile.parity.metric.function import Function
from opdf_compile.parity.metric.metric_result import MetricResult
from opdf_compile.parity.metric.rows import Samples, UserRows, user_rows
from opdf_compile.parity.metric.truth import with_user_rows
from opdf_compile.parity.model_file import PathLike
from opdf_compile.parity.numerics.checking import check_numerics
from opdf_compile.parity.numerics.evidence import read_evidence
from opdf_compile.parity.numerics.int8 import check_quantised
from opdf_compile.parity.numerics.numerics_result import NumericsResult
from opdf_compile.parity.report.conditions import describe_environment
from opdf_compile.parity.report.parity_report import ParityReport
from opdf_compile.parity.report.parity_result import (
    OptimisedGraphs,
    StructurePart,
    overall,
)
from opdf_compile.parity.request import METRIC_MARGIN, Request, ShapeOption, checked_request
from opdf_compile.parity.runtime.registry import DEFAULT
from opdf_compile.parity.structure.compare import StructureResult, compare_structure
from opdf_compile.parity.structure.optimised import compare_optimised

_LOG = logging.getLogger("opdf_compile")

# Latency takes nearly all of the time, so nearly all of the progress is its own.
_LATENCY_STARTS = 0.1


def verify(
    candidate: PathLike,
    reference: PathLike | None = None,
    *,
    device: str = "auto",
    margin: float | str = "auto",
    latency: Literal["no-slower", "equal"] = "no-slower",
    on_inconclusive: Literal["warn", "fail"] = "warn",
    check: PathLike | None = None,
    reference_check: PathLike | None = None,
    budget: float = 60.0,
    only: Iterable[str] | str | None = None,
    shapes: ShapeOption | None = None,
    plot: PathLike | None = None,
    progress: Progress | None = None,
    runtime: str = DEFAULT,
    samples: Samples | None = None,
    metric: str | Function | None = None,
    metric_margin: float = METRIC_MARGIN,
    higher_is_better: bool = True,
) -> ParityReport:
    """Prove, refute, or honestly leave open that an export equals the untouched student's.

    Args:
        candidate: An ONNX file, or a bundle folder (its files are then compared with its manifest).
        reference: The export of the untouched student; None takes the bundle's.
        device: "auto", "cpu", "cuda", or what else the runtime calls its devices.
        margin: Allowed relative difference in latency; "auto" is 0.02 on an accelerator, else 0.05.
        latency: "no-slower" (one-sided) or "equal" (both sides within the margin).
        on_inconclusive: "warn", or "fail" to have an undecided latency or metric exit as a
            refutation.
        check: The candidate's check data; None takes ``X.check.npz`` beside ``X.onnx``.
        reference_check: The reference's, in the same way.
        budget: Seconds that the latency measurement may take; it ends early when it is clear.
        only: Some of "structure", "numerics", "latency", "metric", as names or one comma-separated
            string; None for all, the metric where there is one.
        shapes: Input shapes to measure latency at, as ``{"x": (1, 128)}`` or as the command line's
            ``"x=1x128,32x128"``; each must pass. None takes the check data's first sample.
        plot: A .png, .svg or .pdf file for the latency plots; where the graphs differ, for the
            first difference.
        progress: Called with a sentence and the share that is done.
        runtime: What runs the models, as NAME or NAME:DEVICE; `opdf-compile doctor` lists them.
        samples: Rows of your own, as for `export_onnx`: an `.npz` file, or arrays by name. None
            takes those that the candidate was exported with. Numerics judges the rows whose truth
            is in the check data; the metric judges any.
        metric: A function of (outputs, samples), both dictionaries of arrays with the rows on the
            first axis, the samples with their labels; or `FILE.py:callable`, which is imported and
            called. It gives one number for each row, or one for all.
        metric_margin: What the candidate may be worse by, in the metric's unit, against the torch
            model's own outputs and against the reference.
        higher_is_better: Whether more of the metric is better.

    Returns:
        The report; true where everything that was asked for passed.

    Raises:
        ArtefactError: A file is missing or cannot be used.
        DeviceError: The device cannot be used.
        InputError: An option has no meaning; a part needs a reference and there is none; the
            samples do not fit; or the metric fails.

    Example:
        >>> report = verify("out/")  # doctest: +SKIP
        >>> report.save("report.json")  # doctest: +SKIP
    """
    request = checked_request(
        *(device, margin, latency, on_inconclusive, budget, only, shapes, plot, progress, runtime),
        samples=samples,
        metric=metric,
        metric_margin=metric_margin,
        higher_is_better=higher_is_better,
    )
    files = find_files(candidate, reference, check, reference_check)
    require_reference(files, request.asked)
    rows = _user_rows(files, request)
    structure, notes = _structure(files, request)
    numerics = _numerics(files, request, rows)
    scored = _metric(files, request, rows)
    speed = _latency(files, request)
    # A verdict that is not a pass says which output, or which file, it is about.
    reasons = (f"numerics: {note}" for note in (numerics.reason, *numerics.notes) if note)
    precision, fallback = _in_force(files, request)
    left = (f"{request.device.name} does not run all of it: {fallback}",) if fallback else ()
    notes = (
        *notes,
        *_of_precision(precision, request),
        *left,
        *_draw(structure, speed, request.plot),
        *(f"metric: {note}" for note in scored.notes),
    )
    if speed.verdict == "inconclusive":
        _LOG.warning("latency is inconclusive: %s", "; ".join(speed.notes))
    return ParityReport(
        verdict=overall(structure.verdict, numerics.verdict, speed.verdict, scored.verdict),
        structure=structure,
        numerics=numerics,
        latency=speed,
        metric=scored,
        environment=describe_environment(
            request.device, request.options(), (*notes, *reasons, *speed.notes), precision
        ),
        files=files.table(),
    )


def _in_force(files: ComparedFiles, request: Request) -> tuple[str | None, str]:
    """What a pinned precision became, and what runs elsewhere than on the device.

    Both are read back from the runtime. The precision is None where nothing ran.
    """
    device = request.device
    if not {"numerics", "latency"} & set(request.asked):
        return None, ""
    if not device.precision:
        return "", ""
    try:
        loaded = device.runtime.load(files.candidate, device)
    except UserError:  # Nothing ran either, and the parts that needed it say why.
        return None, ""
    return loaded.precision, getattr(loaded, "fallback", "")


def _of_precision(found: str | None, request: Request) -> tuple[str, ...]:
    asked, name = request.device.precision, request.device.runtime.name
    if found is None or found == asked:
        return ()
    return (
        f"{name} was asked to compute in {asked} and says that it computes in "
        f"{found or 'what the file says'}: numerics and latency are those of that precision",
    )


def _draw(structure: StructurePart, speed: LatencyResult, path: Path | None) -> tuple[str, ...]:
    """Draw what there is: how the graphs differ, which nothing outweighs, else the latency."""
    if path is None:
        return ()
    from opdf_compile.parity.report.figures import plot_difference, plot_latency

    if structure.picture is not None:
        plot_difference(structure.picture, path)
        return (f"{path} shows the first difference of the graphs",)
    if speed.per_shape:
        plot_latency(speed, path)
        return ()
    return (f"{path} was not drawn: the graphs do not differ, and latency was not asked for",)


def _structure(files: ComparedFiles, request: Request) -> tuple[StructurePart, tuple[str, ...]]:
    # A file that is not what it claims to be is refuted, whatever was asked for.
    faults, notes = fold_faults(files)
    tampered = (*files.tampered, *faults)
    if "structure" not in request.asked or files.reference is None:
        return StructurePart("fail", None, tampered) if tampered else StructurePart(), notes
    request.progress("structure", 0.0)
    checks = (files.check, files.reference_check)
    found = compare_structure(files.candidate, files.reference, checks)
    optimised = _optimised(files, found, request)
    part = StructurePart(
        verdict="fail" if tampered else found.verdict,
        nodes=found.nodes,
        differences=(*tampered, *(str(difference) for difference in found.differences)),
        optimised=optimised,
        picture=found.picture,
    )
    return part, (*found.notes, *notes)


def _optimised(files: ComparedFiles, raw: StructureResult, request: Request) -> OptimisedGraphs:
    """Compare what the runtime makes of two equal graphs.

    The raw graphs decide. What the runtime makes of them can differ only because its rewrites
    depend on the order of nodes, so a difference here is told and refutes nothing.
    """
    provider = request.device.provider
    if raw.differences:
        reason = "the graphs in the files differ already"
        return OptimisedGraphs(provider=provider, differences=(reason,))
    request.progress("structure after the runtime's optimisation", _LATENCY_STARTS / 4)
    try:
        found = compare_optimised(raw, files.candidate, request.device)
    except UserError as error:
        # Latency and numerics fail on it in their own words; structure needs no runtime.
        return OptimisedGraphs(provider=provider, differences=(str(error),))
    return OptimisedGraphs(
        verdict="same" if found.verdict == "pass" else "differ",
        provider=provider,
        nodes=found.nodes,
        differences=tuple(str(difference) for difference in found.differences),
    )


def _user_rows(files: ComparedFiles, request: Request) -> UserRows | None:
    """The user's rows, where something asks for them.

    Raises:
        InputError: The metric has none.
    """
    if request.samples is None and request.metric is None:
        return None
    check = None if files.check is None else read_evidence(files.candidate, files.check).data
    rows = user_rows(request.samples, files.candidate, check)
    if rows is None:
        raise InputError(
            f"the metric has no rows: {files.candidate} was exported without samples; give "
            "samples= (--samples F.npz), or export it with them"
        )
    return rows


def _numerics(files: ComparedFiles, request: Request, rows: UserRows | None) -> NumericsResult:
    if "numerics" not in request.asked:
        return NumericsResult()
    request.progress("numerics", _LATENCY_STARTS / 2)
    judge = check_quantised if is_quantised(files.candidate.model) else check_numerics
    found = judge(
        files.candidate,
        files.check,
        request.device,
        reference=files.reference,
        reference_check=files.reference_check,
    )
    return found if rows is None else with_user_rows(found, rows, scored=request.metric is not None)


def _metric(files: ComparedFiles, request: Request, rows: UserRows | None) -> MetricResult:
    if request.metric is None or rows is None:
        return MetricResult()
    request.progress("the metric", _LATENCY_STARTS * 0.75)
    return check_metric(
        request.metric, request.claim, rows, files.candidate, files.reference, request.device
    )


def _latency(files: ComparedFiles, request: Request) -> LatencyResult:
    if "latency" not in request.asked or files.reference is None:
        return LatencyResult()
    return measure_latency(
        files.candidate,
        files.reference,
        request.device,
        margin=request.margin,
        rule=request.latency,
        budget=request.budget,
        check=files.check,
        shapes=request.shapes or None,
        progress=lambda text, share: request.progress(
            text, _LATENCY_STARTS + (1 - _LATENCY_STARTS) * share
        ),
    )
