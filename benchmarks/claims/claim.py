"""What a claim is, what was measured of it, and the rule that makes a verdict of the two."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from quality.statistics import compare

Verdict = Literal["confirmed", "refuted", "open"]


@dataclass(frozen=True)
class Claim:
    """What a paper says, so that a figure can contradict it.

    Attributes:
        system: Name of the system.
        source: The paper, such as "arXiv 2311.05061".
        says: The claim as a sentence.
        task: What it is tried on here.
        method: What is measured.
        baseline: What it is compared with, as well tuned.
        equal: What both sides get the same of: "steps", "time", "parameters".
        unit: Of the figure, such as "points of accuracy".
        above: The claim holds where the figure lies above this.
    """

    system: str
    source: str
    says: str
    task: str
    method: str
    baseline: str
    equal: str
    unit: str
    above: float = 0.0


@dataclass(frozen=True)
class Finding:
    """A claim's figure.

    Attributes:
        claim: What was tried.
        figure: Mean over the seeds, method against baseline, in the claim's unit.
        ci_low: Lower end of its 95 % interval.
        ci_high: Upper end.
        seeds: Number of pairs.
        remark: What a reader must know beside the figure; may be empty.
    """

    claim: Claim
    figure: float
    ci_low: float
    ci_high: float
    seeds: int
    remark: str = ""

    @property
    def verdict(self) -> Verdict:
        """Confirmed or refuted where the whole interval says so, open otherwise."""
        if math.isnan(self.ci_low) or math.isnan(self.ci_high):
            return "open"
        if self.ci_low > self.claim.above:
            return "confirmed"
        return "refuted" if self.ci_high < self.claim.above else "open"

    def row(self) -> dict[str, Any]:
        """The finding as JSON; an end at infinity is None."""
        told = {key: value for key, value in asdict(self).items() if key != "claim"}
        finite = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in told.items()
        }
        return {**asdict(self.claim), **finite, "verdict": self.verdict}


def paired(
    claim: Claim, method: Sequence[float], baseline: Sequence[float], remark: str = ""
) -> Finding:
    """The finding of scores that are paired by seed: their mean difference and its t interval.

    Raises:
        InputError: The two differ in length, there are fewer than two, or one is not finite.
    """
    found = compare(method, baseline)
    return Finding(claim, found.difference, found.ci_low, found.ci_high, found.seeds, remark)


@dataclass(frozen=True)
class System:
    """One system's experiments.

    Attributes:
        name: What `--only` calls it; the anchor of its section in docs/distill.md.
        measure: Runs them; True asks for the small version (about a minute), False for the whole.
            Its second argument is told what is done and the share of it.
    """

    name: str
    measure: Callable[[bool, Callable[[str, float], None]], Sequence[Finding]]
