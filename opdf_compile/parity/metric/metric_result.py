"""What the metric found: the values of the report."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from opdf_compile.parity.metric.paired import Claim, PairedDifference

# The most serious first.
_SERIOUS = ("fail", "inconclusive", "pass")


@dataclass(frozen=True)
class MetricResult:
    """The verdict on what the candidate is worth.

    Attributes:
        name: The metric's.
        scores: By "candidate", "torch" and "reference", the mean score or the one number; the last
            two where they are known.
        against: By "torch" and "reference", the candidate's difference. That from the torch model
            judges the export, that from the reference the student that ships.
        claim: The margin, and whether more is better; None where no metric was asked for.
        samples: Rows that were judged.
        method: "t" or "bootstrap".
        notes: What a reader of the verdict should know, in sentences.
    """

    name: str = ""
    scores: dict[str, float] = field(default_factory=dict)
    against: dict[str, PairedDifference] = field(default_factory=dict)
    claim: Claim | None = None
    samples: int | None = None
    method: str = ""
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """The more serious of both differences': "pass", "fail", "inconclusive", "not_asked"."""
        found = {difference.verdict for difference in self.against.values()}
        return next((verdict for verdict in _SERIOUS if verdict in found), "not_asked")

    @property
    def needed(self) -> int | None:
        """Rows that would decide all of it; None where it is decided, or they cannot be told."""
        open_ones = [d for d in self.against.values() if d.verdict == "inconclusive"]
        found = [difference.needed for difference in open_ones if difference.needed is not None]
        return max(found) if found and len(found) == len(open_ones) else None

    def to_json(self) -> dict[str, Any]:
        """The values under the report's keys; the difference is that from the reference."""
        reference, torch = self.against.get("reference"), self.against.get("torch")
        return {
            "verdict": self.verdict,
            "candidate": self.scores.get("candidate"),
            "reference": self.scores.get("reference"),
            "difference": reference and reference.difference,
            "ci_low": reference and reference.low,
            "ci_high": reference and reference.high,
            "margin": self.claim and self.claim.margin,
            "samples": self.samples,
            "name": self.name or None,
            "higher_is_better": self.claim and self.claim.higher_is_better,
            "method": self.method or None,
            "torch": self.scores.get("torch"),
            "against_torch": torch and torch.to_json(),
            "against_reference": reference and reference.to_json(),
            "needed": self.needed,
        }
