"""The rows of benchmarks/results/quality.json: one per task, setting, method and endpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from quality.statistics import ALPHA, corrected

SCHEMA = "opdf-quality/1"


@dataclass(frozen=True)
class Scores:
    """What was measured: both sides of one comparison, seed by seed.

    Attributes:
        task: Name of the task.
        start: "random" or "warm".
        length: "short" or "long".
        method: Name of the method.
        baseline: Name of its rival.
        endpoint: "accuracy", "kl", or another figure of the task.
        ours: Scores of the method, one per seed.
        theirs: Scores of the rival, the same seeds in the same order.
        optimizer: Name of the optimizer.
        question: Comparisons with the same one are corrected together, whatever else differs.
    """

    task: str
    start: str
    length: str
    method: str
    baseline: str
    endpoint: str
    ours: tuple[float, ...]
    theirs: tuple[float, ...]
    optimizer: str = "sgd"
    question: str = ""

    @property
    def family(self) -> tuple[str, ...]:
        """What Holm corrects together: the same question on every task."""
        if self.question:
            return (self.question,)
        return (
            self.optimizer, self.start, self.length, self.method, self.baseline, self.endpoint
        )  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One comparison; `ci_low` and `ci_high` are Holm's (see statistics.py), over its family.

    Attributes:
        score: Mean score of the method.
        baseline_score: Mean score of the rival.
        ci95_low: Lower end of the interval of this task alone.
        ci95_high: Its upper end.
        p_holm: `p_t` after Holm, over the tasks of the family.
        family: Number of tasks of the family.
    """

    task: str
    start: str
    length: str
    optimizer: str
    method: str
    baseline: str
    endpoint: str
    score: float
    baseline_score: float
    difference: float
    ci_low: float
    ci_high: float
    ci95_low: float
    ci95_high: float
    p_t: float
    p_sign_flip: float
    p_holm: float
    family: int
    seeds: int


def rows_of(measured: Iterable[Scores], *, alpha: float = ALPHA) -> list[Row]:
    """Compare, and correct over the tasks of every family."""
    families: dict[tuple[str, ...], list[Scores]] = {}
    for scores in measured:
        families.setdefault(scores.family, []).append(scores)
    return [row for members in families.values() for row in _family_rows(members, alpha)]


def to_json(rows: Sequence[Row], **beside: Any) -> dict[str, Any]:
    """The JSON value of the rows and of what belongs to them (machine, protocol, figures)."""
    return {"schema": SCHEMA, **beside, "rows": [asdict(row) for row in rows]}


def from_json(data: Mapping[str, Any]) -> list[Row]:
    """The rows of a JSON value."""
    return [Row(**row) for row in data["rows"]]


def _family_rows(members: Sequence[Scores], alpha: float) -> list[Row]:
    found = corrected([(m.ours, m.theirs) for m in members], alpha=alpha)
    return [_row(member, asdict(each)) for member, each in zip(members, found, strict=True)]


def _row(member: Scores, figures: dict[str, Any]) -> Row:
    del figures["spread"]
    return Row(
        task=member.task,
        start=member.start,
        length=member.length,
        optimizer=member.optimizer,
        method=member.method,
        baseline=member.baseline,
        endpoint=member.endpoint,
        **figures,
    )
