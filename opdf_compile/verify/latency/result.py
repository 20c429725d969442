"""What a latency measurement found: the values of the report, and the series for plots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from opdf_compile.verify.latency.statistics import Interval, interval_json

Role = Literal["reference", "candidate", "control"]
ROLES: tuple[Role, ...] = ("reference", "candidate", "control")

_Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LatencyResult:
    """What the measurement found.

    Attributes:
        verdict: "pass", "fail", "inconclusive", or "not_asked".
        device: "cpu" or "cuda".
        provider: The runtime's execution provider.
        ratio: Candidate / reference.
        ci_low: Lower end of the 90 % interval.
        ci_high: Upper end.
        margin: Allowed relative difference.
        rule: "no-slower" or "equal".
        control: Reference / reference under the same protocol.
        sessions: Independently created groups of sessions.
        rounds: Rounds of one block each, per group.
        reference_ms: Median milliseconds of one run.
        candidate_ms: Likewise.
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
    seconds: Mapping[Role, _Array] = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The values under the report's keys."""
        names = (
            *("verdict", "device", "provider", "ratio", "ci_low", "ci_high", "margin", "rule"),
            *("control", "sessions", "rounds", "reference_ms", "candidate_ms"),
        )
        values = {name: getattr(self, name) for name in names}
        return {**values, "control": interval_json(self.control)}
