"""`verify`: structure, numerics and latency of an export, joined in one verdict."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from opdf_compile.errors import InputError
from opdf_compile.verify.artefacts import Artefacts, PathLike, find_artefacts, require_reference
from opdf_compile.verify.latency.measure import (
    SEED,
    Progress,
    check_budget,
    measure_latency,
)
from opdf_compile.verify.latency.result import LatencyResult
from opdf_compile.verify.latency.statistics import RULES, Rule
from opdf_compile.verify.numerics.check import check_numerics
from opdf_compile.verify.report.environment import describe_environment
from opdf_compile.verify.report.value import (
    PARTS,
    NumericsPart,
    ParityReport,
    StructurePart,
    overall,
)
from opdf_compile.verify.runtime.sessions import Device, resolve_device
from opdf_compile.verify.structure.compare import compare_structure

_LOG = logging.getLogger("opdf_compile")

AUTO_MARGIN = {"cuda": 0.02, "cpu": 0.05}
ON_INCONCLUSIVE = ("warn", "fail")
# Latency takes nearly all of the time, so nearly all of the progress is its own.
_LATENCY_STARTS = 0.1


@dataclass(frozen=True)
class _Request:
    """The caller's options, checked."""

    device: Device
    margin: float
    latency: Rule
    on_inconclusive: str
    budget: float
    asked: tuple[str, ...]
    plot: Path | None
    progress: Progress

    def options(self) -> dict[str, Any]:
        return {
            "only": list(self.asked),
            "margin": self.margin,
            "latency": self.latency,
            "on_inconclusive": self.on_inconclusive,
            "budget": self.budget,
            "seed": SEED,
            "threads": None,  # The runtime's own choice.
        }


def verify(
    candidate: PathLike,
    reference: PathLike | None = None,
    *,
    device: str = "auto",
    margin: float | str = "auto",
    latency: Literal["no-slower", "equal"] = "no-slower",
    on_inconclusive: Literal["warn", "fail"] = "warn",
    check: PathLike | None = None,
    budget: float = 60.0,
    only: Iterable[str] | str | None = None,
    plot: PathLike | None = None,
    progress: Progress | None = None,
) -> ParityReport:
    """Prove, refute, or honestly leave open that an export equals the untouched student's.

    Args:
        candidate: An ONNX file, or a bundle folder (its files are then compared with its manifest).
        reference: The export of the untouched student; None takes the bundle's.
        device: "auto", "cpu" or "cuda".
        margin: Allowed relative difference in latency; "auto" is 0.02 on CUDA, 0.05 on CPU.
        latency: "no-slower" (one-sided) or "equal" (both sides within the margin).
        on_inconclusive: "warn", or "fail" to have an undecided latency exit as a refutation.
        check: The candidate's check data; None takes ``X.check.npz`` beside ``X.onnx``.
        budget: Seconds that the latency measurement may take; it ends early when it is clear.
        only: Some of "structure", "numerics", "latency", as names or one comma-separated string.
        plot: A .png, .svg or .pdf file for the latency plots.
        progress: Called with a sentence and the share that is done.

    Returns:
        The report; true where everything that was asked for passed.

    Raises:
        ArtefactError: A file is missing or cannot be used.
        DeviceError: The device cannot be used.
        InputError: An option has no meaning; or a part needs a reference and there is none.

    Example:
        >>> report = verify("out/")  # doctest: +SKIP
        >>> report.save("report.json")  # doctest: +SKIP
    """
    request = _request(device, margin, latency, on_inconclusive, budget, only, plot, progress)
    files = find_artefacts(candidate, reference, check)
    require_reference(files, request.asked)
    structure, notes = _structure(files, request)
    numerics, reasons = _numerics(files, request)
    speed = _latency(files, request)
    if request.plot is not None:
        from opdf_compile.verify.report.plots import plot_latency

        plot_latency(speed, request.plot)
    if speed.verdict == "inconclusive":
        _LOG.warning("latency is inconclusive: %s", "; ".join(speed.notes))
    return ParityReport(
        verdict=overall(structure.verdict, numerics.verdict, speed.verdict),
        structure=structure,
        numerics=numerics,
        latency=speed,
        environment=describe_environment(
            request.device, request.options(), (*notes, *reasons, *speed.notes)
        ),
        files=files.table(),
    )


def _request(
    device: str,
    margin: float | str,
    latency: str,
    on_inconclusive: str,
    budget: float,
    only: Iterable[str] | str | None,
    plot: PathLike | None,
    progress: Progress | None,
) -> _Request:
    """Check every option before any file is opened or any second is spent."""
    if latency not in RULES:
        raise InputError(f"latency is {latency!r}; give {' or '.join(RULES)}")
    if on_inconclusive not in ON_INCONCLUSIVE:
        raise InputError(
            f"on_inconclusive is {on_inconclusive!r}; give {' or '.join(ON_INCONCLUSIVE)}"
        )
    check_budget(budget)
    asked = _asked(only)
    number = _margin(margin)
    target = None if plot is None else _plot_target(Path(plot), asked)
    where = resolve_device(device)
    return _Request(
        device=where,
        margin=AUTO_MARGIN[where.name] if number is None else number,
        latency=latency,
        on_inconclusive=on_inconclusive,
        budget=float(budget),
        asked=asked,
        plot=target,
        progress=progress or (lambda text, share: None),
    )


def _asked(only: Iterable[str] | str | None) -> tuple[str, ...]:
    if only is None:
        return PARTS
    words = only.split(",") if isinstance(only, str) else list(only)
    names = [str(word).strip() for word in words]
    unknown = [name for name in names if name not in PARTS]
    if unknown or not names:
        found = repr(unknown[0]) if unknown else "empty"
        raise InputError(f"only is {found}; give one or more of {', '.join(PARTS)}")
    return tuple(part for part in PARTS if part in names)


def _margin(margin: float | str) -> float | None:
    """The margin as a number; None where the device decides."""
    if margin == "auto":
        return None
    try:
        number = math.nan if isinstance(margin, bool) else float(margin)
    except (TypeError, ValueError):
        number = math.nan
    if not 0.0 < number <= 1.0:
        raise InputError(f"margin is {margin!r}; give auto or a number above 0 and at most 1")
    return number


def _plot_target(path: Path, asked: tuple[str, ...]) -> Path:
    from opdf_compile.verify.report.plots import SUFFIXES

    if "latency" not in asked:
        raise InputError("a plot shows latency, which only= leaves out; ask for latency too")
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"the plot {path} is no {', '.join(SUFFIXES)} file; give such a name")
    if not path.parent.is_dir():
        raise InputError(f"the folder {path.parent} of the plot does not exist; create it")
    return path


def _structure(files: Artefacts, request: _Request) -> tuple[StructurePart, tuple[str, ...]]:
    tampered = files.tampered
    if "structure" not in request.asked or files.reference is None:
        # A file that is not what was exported refutes a bundle, whatever was asked for.
        return StructurePart("fail", None, tampered) if tampered else StructurePart(), ()
    request.progress("structure", 0.0)
    found = compare_structure(files.candidate, files.reference)
    part = StructurePart(
        verdict="fail" if tampered else found.verdict,
        nodes=found.nodes,
        differences=(*tampered, *(str(difference) for difference in found.differences)),
    )
    return part, found.notes


def _numerics(files: Artefacts, request: _Request) -> tuple[NumericsPart, tuple[str, ...]]:
    if "numerics" not in request.asked:
        return NumericsPart(), ()
    request.progress("numerics", _LATENCY_STARTS / 2)
    found = check_numerics(
        files.candidate,
        files.check,
        request.device,
        reference=files.reference,
        reference_check=files.reference_check,
    )
    part = NumericsPart(
        verdict=found.verdict,
        max_abs_error=found.max_abs_error,
        max_rel_error=found.max_rel_error,
        noise_floor=found.noise_floor,
        tolerance=found.tolerance,
        samples=found.samples,
    )
    # A verdict that is not a pass says which output, or which file, it is about.
    return part, () if found.verdict == "pass" else (f"numerics: {found.worst}",)


def _latency(files: Artefacts, request: _Request) -> LatencyResult:
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
        progress=lambda text, share: request.progress(
            text, _LATENCY_STARTS + (1 - _LATENCY_STARTS) * share
        ),
    )
