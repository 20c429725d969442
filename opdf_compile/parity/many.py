"""`verify` over many candidates: each has its report, and all of them one exit code.

A manifest is a text file (.txt) with a bundle or an ONNX file in each line, beside the manifest or
by its whole path. Empty lines and what follows a # at the start of a line are passed over.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opdf_compile.errors import ArtefactError, InputError, UserError
from opdf_compile.files import is_folder, read_failure
from opdf_compile.parity.latency.measure import Progress
from opdf_compile.parity.report.parity_report import ParityReport
from opdf_compile.parity.report.parity_result import ASPECTS
from opdf_compile.parity.request import METRIC_MARGIN, checked_request
from opdf_compile.parity.runtime.registry import DEFAULT
from opdf_compile.parity.verdict import verify

SCHEMA = "opdf-reports/1"
SUFFIX = ".txt"
# The most serious first: refuted, cannot be used, numerics not checked, latency not decided.
_SERIOUS = (1, 2, 4, 3, 0)


@dataclass(frozen=True)
class Entry:
    """One candidate.

    Attributes:
        name: As the manifest has it.
        report: What was found; None where it cannot be used.
        error: Why it cannot be used, or why its report could not be saved.
        seconds: How long it took.
    """

    name: str
    report: ParityReport | None
    error: str = ""
    seconds: float = 0.0

    @property
    def exit_code(self) -> int:
        """That of the report, or 2; 2 goes before all but a refutation."""
        found = UserError.exit_code if self.report is None else self.report.exit_code
        return worst((found, UserError.exit_code)) if self.error else found

    @property
    def verdict(self) -> str:
        """That of the report, or "unusable"."""
        return "unusable" if self.report is None else self.report.verdict


@dataclass(frozen=True)
class Reports:
    """What was found of many candidates; true where every one passed."""

    entries: tuple[Entry, ...]

    def __bool__(self) -> bool:
        return self.exit_code == 0

    @property
    def exit_code(self) -> int:
        """The most serious one: 1 refuted, 2 cannot be used, 4 not checked, 3 undecided, 0."""
        return worst(entry.exit_code for entry in self.entries)

    def to_json(self) -> dict[str, Any]:
        """Plain values; every report as `verify --json` writes it."""
        return {
            "schema": SCHEMA,
            "exit_code": self.exit_code,
            "candidates": [
                {
                    "name": entry.name,
                    "verdict": entry.verdict,
                    "exit_code": entry.exit_code,
                    "error": entry.error or None,
                    "report": None if entry.report is None else entry.report.to_json(),
                }
                for entry in self.entries
            ],
        }


def worst(exit_codes: Iterable[int]) -> int:
    """The most serious of them; 0 of none."""
    return min(exit_codes, key=_SERIOUS.index, default=0)


def is_manifest(path: Path) -> bool:
    """Whether a candidate is a list of candidates; a bundle's folder may have any name."""
    return path.suffix.lower() == SUFFIX and not is_folder(path)


def read_manifest(path: Path) -> dict[str, Path]:
    """The candidates that a manifest names, in its order.

    Raises:
        ArtefactError: It cannot be read.
        InputError: It names nothing, or one twice.
    """
    try:
        # Names may hold what str.splitlines takes for an end of a line.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ArtefactError(read_failure(path, error)) from error
    named = [line.strip(" \t\r") for line in lines]
    named = [line for line in named if line and not line.startswith("#")]
    if not named:
        raise InputError(f"{path} names nothing, wanted a bundle or an ONNX file in each line")
    found = {name: path.parent / name for name in named}
    places = [os.path.normpath(path.parent / name) for name in named]
    twice = next((n for n, place in zip(named, places, strict=True) if places.count(place) > 1), "")
    if twice:
        raise InputError(f"{path} names {twice} twice; leave one of them out")
    return found


def verify_many(
    candidates: dict[str, Path],
    *,
    done: Callable[[Path, ParityReport], None] = lambda path, report: None,
    progress: Progress | None = None,
    **options: Any,
) -> Reports:
    """Verify one after the other; one that cannot be used does not keep the others from it.

    Args:
        candidates: Bundles and ONNX files, by the name that they are told under.
        done: Called with each report, as soon as it is there.
        progress: Called with a sentence and the share of all of it that is done.
        options: device, runtime, margin, latency, on_inconclusive, budget, only, shapes, samples,
            metric, metric_margin and higher_is_better, as for `verify`, the same for all.

    Raises:
        DeviceError: The device cannot be used, whatever the candidate.
        InputError: An option has no meaning, or there is no candidate.
    """
    if not candidates:
        raise InputError("there is nothing to verify, wanted at least one bundle or ONNX file")
    _check(options)
    entries = []
    for place, (name, path) in enumerate(candidates.items()):
        told = _told(name, place, len(candidates), progress)
        entries.append(_verified(name, path, told, done, options))
    return Reports(tuple(entries))


def _verified(
    name: str,
    path: Path,
    progress: Progress,
    done: Callable[[Path, ParityReport], None],
    options: dict[str, Any],
) -> Entry:
    began = time.perf_counter()
    try:
        report = verify(path, progress=progress, **options)
    except UserError as error:
        return Entry(name, None, str(error), time.perf_counter() - began)
    seconds = time.perf_counter() - began
    try:
        done(path, report)
    except UserError as error:  # A bundle that cannot be written to has its verdict all the same.
        return Entry(name, report, str(error), seconds)
    return Entry(name, report, seconds=seconds)


def _check(options: dict[str, Any]) -> None:
    """Refuse options that no candidate can be verified with, before the first is."""
    usual: dict[str, Any] = {"device": "auto", "margin": "auto", "latency": "no-slower"}
    usual |= {"on_inconclusive": "warn", "budget": 60.0, "only": None, "shapes": None}
    usual |= {"runtime": DEFAULT, "samples": None, "metric": None}
    usual |= {"metric_margin": METRIC_MARGIN, "higher_is_better": True}
    odd = next((name for name in options if name not in usual), None)
    if odd is not None:
        raise InputError(
            f"{odd} is for one candidate, and there may be several; leave it out, or give verify "
            "one after the other"
        )
    asked = {**usual, **options}
    checked_request(**asked, plot=None, progress=None)


def _told(name: str, place: int, count: int, progress: Progress | None) -> Progress:
    def tell(text: str, share: float) -> None:
        if progress is not None:
            progress(f"{name} ({place + 1} of {count}): {text}", (place + share) / count)

    return tell


def report_rows(reports: Reports) -> Iterator[tuple[str, ...]]:
    """A head and a row for each candidate, for a table."""
    reports_of = [entry.report for entry in reports.entries if entry.report is not None]
    scored = any(found.metric.verdict != "not_asked" for found in reports_of)
    shown = ASPECTS if scored else tuple(part for part in ASPECTS if part != "metric")
    yield "candidate", "verdict", *shown
    for entry in reports.entries:
        found = entry.report
        parts: tuple[str, ...] = ("-",) * len(shown)
        if found is not None:
            asked = [getattr(found, part).verdict for part in shown]
            parts = tuple("-" if part == "not_asked" else part.replace("_", " ") for part in asked)
        yield entry.name, entry.verdict, *parts
