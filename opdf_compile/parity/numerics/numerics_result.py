"""What the check of the numbers found: per element, per output, in all."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from opdf_compile.artefacts import Drop


@dataclass(frozen=True)
class Element:
    """One element of one output.

    Attributes:
        output: Name of the output.
        sample: Number of the sample in the check data.
        index: Its place.
        value: What the candidate computed.
        truth: What is right.
        error: The distance; infinity or NaN where one of them is.
        tolerance: What the error may be.
    """

    output: str
    sample: int
    index: tuple[int, ...]
    value: float
    truth: float
    error: float
    tolerance: float

    def __str__(self) -> str:
        return f"sample {self.sample}, element {self.index}: {self.value:.9g} for {self.truth:.9g}"


@dataclass(frozen=True)
class OutputError:
    """How one output compares with its truth, over all samples.

    Attributes:
        output: Name of the output.
        max_abs: Largest absolute error; infinity where shapes, NaNs or exact values differ.
        rms: Root mean square error.
        scale: Largest absolute value of the truth.
        floor_max: Noise floor of the largest error.
        floor_rms: Noise floor of the RMS error.
        factor: Tolerance over floor.
        element: The worst element; None where there is none to name.
        rows: Independent rows that were compared.
        own_rms: The floor's part that owes nothing to the reference.
        budget_rms: What the same-precision reference leaves for the RMS error; infinity without.
        problem: What no tolerance excuses, in a sentence; empty if nothing.
        unjudged: Why nothing can be said about it, in a sentence; empty if it was judged.
        drop: What quantisation costs it; None where the file is not quantised.
        computed: Whether the runtime gave it back at all.
    """

    output: str
    max_abs: float = 0.0
    rms: float = 0.0
    scale: float = 0.0
    floor_max: float = 0.0
    floor_rms: float = 0.0
    factor: float = 1.0
    element: Element | None = None
    rows: int = 0
    own_rms: float = 0.0
    budget_rms: float = math.inf
    problem: str = ""
    unjudged: str = ""
    drop: Drop | None = None
    computed: bool = True

    @property
    def tolerance_max(self) -> float:
        """What the largest error may be."""
        return self.factor * self.floor_max

    @property
    def tolerance_rms(self) -> float:
        """What the RMS error may be."""
        return min(self.factor * self.floor_rms, self.budget_rms)

    @property
    def excess(self) -> float:
        """The larger of error over tolerance in both norms; above 1 is a failure."""
        if self.problem:
            return math.inf
        return max(ratio(self.max_abs, self.tolerance_max), ratio(self.rms, self.tolerance_rms))

    @property
    def amplification(self) -> float:
        """The runtime's RMS error over what the torch model's own arithmetic explains."""
        return ratio(self.rms, self.own_rms)

    def to_json(self) -> dict[str, Any]:
        """Its errors and what they may be, with its worst element."""
        return {
            "output": self.output,
            "max_abs_error": self.max_abs,
            "tolerance": self.tolerance_max,
            "rms_error": self.rms,
            "rms_tolerance": self.tolerance_rms,
            "noise_floor": self.floor_max,
            "rows": self.rows,
            "worst": None if self.element is None else asdict(self.element),
            "problem": self.problem or self.unjudged or None,
        }

    def __str__(self) -> str:
        at = f" at {self.element}" if self.element else ""
        if self.problem:
            return f"output {self.output!r}: {self.problem}{at}"
        if self.unjudged:
            return f"output {self.output!r} was not judged: {self.unjudged}"
        return (
            f"output {self.output!r}: error {self.max_abs:.2e} (RMS {self.rms:.2e})"
            f"{at or ' at no element'}, tolerance {self.tolerance_max:.2e} "
            f"(RMS {self.tolerance_rms:.2e})"
        )


@dataclass(frozen=True)
class Dropped:
    """What quantisation costs one output of the candidate, and of the reference beside it.

    Attributes:
        candidate: The candidate's drop.
        reference: The reference's; None where there is none that is quantised alike.
    """

    candidate: Drop
    reference: Drop | None = None

    def to_json(self) -> dict[str, Any]:
        """Both drops."""
        theirs = self.reference
        return {
            "candidate": self.candidate.to_json(),
            "reference": None if theirs is None else theirs.to_json(),
        }


@dataclass(frozen=True)
class Precision:
    """The error budget of a precision, measured against the reference's export in it.

    In int8 the errors are relative ones: RMS error over the RMS of the float64 truth.

    Attributes:
        dtype: The candidate's floating dtype, or what it is quantised to.
        reference_dtype: The reference's; None where there is no check data of it.
        error: The candidate's amplification: RMS error over what torch's own arithmetic explains,
            of the output that is closest to its budget; None where there is no budget.
        reference_error: The reference's amplification on that output.
        allowed: What the candidate's may be.
        sentence: What this means, or why there is no budget.
    """

    dtype: str
    reference_dtype: str | None = None
    error: float | None = None
    reference_error: float | None = None
    allowed: float | None = None
    sentence: str = ""


@dataclass(frozen=True)
class NumericsResult:
    """The verdict on the numbers.

    Attributes:
        verdict: "pass", "fail", "not_checked" (no check data, or an output it cannot judge) or
            "not_asked".
        max_abs_error: Largest absolute error over outputs and samples.
        max_rel_error: Largest error over the largest value of its output.
        noise_floor: Noise floor of the output that is closest to its tolerance, absolute.
        tolerance: What that output's error may be, absolute.
        samples: How many inputs were run.
        outputs: How each output compares.
        worst: Why it fails, or which output comes closest, in a sentence.
        precision: The exported dtype and its error budget.
        notes: What a reader of the verdict should know, in sentences.
        drops: What quantisation costs, by output; empty where the candidate is not quantised.
    """

    verdict: str = "not_asked"
    max_abs_error: float | None = None
    max_rel_error: float | None = None
    noise_floor: float | None = None
    tolerance: float | None = None
    samples: int | None = None
    outputs: tuple[OutputError, ...] = ()
    worst: str = ""
    precision: Precision | None = None
    notes: tuple[str, ...] = ()
    drops: tuple[Dropped, ...] = ()

    @property
    def reason(self) -> str:
        """Why there is no pass; empty where there is one."""
        return "" if self.verdict == "pass" else self.worst

    @property
    def decided_by(self) -> OutputError | None:
        """The output that decided, or that came closest to its tolerance."""
        return max(self.outputs, key=urgency, default=None)

    def to_json(self) -> dict[str, Any]:
        """The values under the report's keys; sentences stand among its notes."""
        return {
            "verdict": self.verdict,
            "max_abs_error": self.max_abs_error,
            "max_rel_error": self.max_rel_error,
            "noise_floor": self.noise_floor,
            "tolerance": self.tolerance,
            "samples": self.samples,
            "outputs": [error.to_json() for error in self.outputs],
            "precision": None if self.precision is None else asdict(self.precision),
            "drops": [dropped.to_json() for dropped in self.drops],
        }


def urgency(error: OutputError) -> tuple[bool, bool, float]:
    """Sorts outputs: one that fails decides before one that nobody can judge, then the closest."""
    return error.excess > 1, bool(error.unjudged), error.excess


def unusable(output: str, problem: str, element: Element | None = None) -> OutputError:
    """An output with a fault that no tolerance excuses."""
    return OutputError(output, math.inf, math.inf, element=element, problem=problem, own_rms=1.0)


def ratio(error: float, tolerance: float) -> float:
    """Error over tolerance; any error is infinitely above a tolerance of 0."""
    if tolerance > 0:
        return error / tolerance
    return 0.0 if error == 0 else math.inf
