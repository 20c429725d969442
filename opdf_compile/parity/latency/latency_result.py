"""What a latency measurement found: the values of the report, and the series for plots.

A measurement covers one shape of the inputs or several. Each shape has its own `ShapeResult`; the
whole `LatencyResult` repeats the values of the shape that decided (the worst one) under the keys of
the report's contract, and adds what belongs to the sessions: how long they took to open, and the
size of their files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from opdf_compile.parity.latency.ratio_interval import Interval, interval_json
from opdf_compile.parity.latency.shape_option import Shape

SessionRole = Literal["reference", "candidate", "control"]
SESSION_ROLES: tuple[SessionRole, ...] = ("reference", "candidate", "control")

_Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ShapeResult:
    """What was found for one shape of the inputs.

    Attributes:
        shape: The shape of every input, by name.
        verdict: "pass", "fail" or "inconclusive".
        ratio: Candidate / reference.
        ci_low: Lower end of the 90 % interval.
        ci_high: Upper end.
        control: Reference / reference under the same protocol.
        sessions: Independently created groups of sessions in which the shape was measured.
        rounds: Rounds of one block each, per group.
        reference_ms: Median milliseconds of one run.
        candidate_ms: Likewise.
        throughput: Samples per second by "reference" and "candidate"; None without a batch axis.
        memory: Peak bytes by "reference" and "candidate"; None where they cannot be known.
        seconds: Seconds per run by role, shape (sessions, rounds); for plots, not in the JSON.
    """

    shape: Mapping[str, Shape]
    verdict: str
    ratio: float
    ci_low: float
    ci_high: float
    control: Interval
    sessions: int
    rounds: int
    reference_ms: float
    candidate_ms: float
    throughput: Mapping[str, float | None] = field(default_factory=dict)
    memory: Mapping[str, int | None] = field(default_factory=dict)
    seconds: Mapping[SessionRole, _Array] = field(default_factory=dict, repr=False)

    def to_json(self) -> dict[str, Any]:
        """The values of this shape, under the names of the attributes."""
        names = (
            *("verdict", "ratio", "ci_low", "ci_high", "sessions", "rounds"),
            *("reference_ms", "candidate_ms"),
        )
        return {
            "shape": {name: list(sizes) for name, sizes in self.shape.items()},
            **{name: getattr(self, name) for name in names},
            "control": interval_json(self.control),
            "throughput": dict(self.throughput),
            "memory": dict(self.memory),
        }


@dataclass(frozen=True, eq=False)
class LatencyResult:
    """What the measurement found.

    Attributes:
        verdict: "pass", "fail", "inconclusive", or "not_asked": over all shapes, "fail" where one
            fails, "pass" where all pass.
        device: "cpu" or "cuda".
        provider: The runtime's execution provider.
        ratio: Candidate / reference, of the shape that decided: the worst one.
        ci_low: Lower end of the 90 % interval.
        ci_high: Upper end.
        margin: Allowed relative difference.
        rule: "no-slower" or "equal".
        control: Reference / reference under the same protocol.
        sessions: Independently created groups of sessions.
        rounds: Rounds of one block each, per group.
        reference_ms: Median milliseconds of one run.
        candidate_ms: Likewise.
        per_shape: One result for each shape, in the order asked for.
        throughput: Samples per second by "reference" and "candidate", of the shape that decided.
        memory: Peak bytes by "reference" and "candidate", the largest over the shapes.
        cold_start_ms: Median milliseconds to create a session, by "reference" and "candidate".
        cold_start: Their ratio with its 90 % interval; it is reported and decides nothing.
        file_bytes: Size on disk with external data, by "reference" and "candidate".
        seconds: Seconds per run by role, shape (sessions, rounds); for plots, not in the JSON.
        notes: How the measurement ended, in sentences; not in the JSON.
    """

    verdict: str = "not_asked"
    device: str | None = None
    provider: str | None = None
    ratio: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    margin: float | None = None
    rule: str | None = None
    control: Interval | None = None
    sessions: int | None = None
    rounds: int | None = None
    reference_ms: float | None = None
    candidate_ms: float | None = None
    per_shape: tuple[ShapeResult, ...] = ()
    throughput: Mapping[str, float | None] = field(default_factory=dict)
    memory: Mapping[str, int | None] = field(default_factory=dict)
    cold_start_ms: Mapping[str, float] = field(default_factory=dict)
    cold_start: Interval | None = None
    file_bytes: Mapping[str, int] = field(default_factory=dict)
    seconds: Mapping[SessionRole, _Array] = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The values under the report's keys."""
        names = (
            *("verdict", "device", "provider", "ratio", "ci_low", "ci_high", "margin", "rule"),
            *("control", "sessions", "rounds", "reference_ms", "candidate_ms"),
        )
        values = {name: getattr(self, name) for name in names}
        return {
            **values,
            "control": interval_json(self.control),
            "throughput": dict(self.throughput),
            "memory": dict(self.memory),
            "cold_start_ms": dict(self.cold_start_ms),
            "cold_start": interval_json(self.cold_start),
            "file_bytes": dict(self.file_bytes),
            "shapes": [shape.to_json() for shape in self.per_shape],
        }
