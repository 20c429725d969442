"""Counts of verdicts, their shares with exact intervals, and the budget that halves a share."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from calibration.pairs import PAIRS

LEVEL = 0.95
VERDICTS = ("pass", "fail", "inconclusive")
_STEPS = 60


@dataclass(frozen=True)
class Share:
    """How often something was seen.

    Attributes:
        count: Times it was seen.
        total: Times it was looked for.
        low: Lower end of the 95 % Clopper-Pearson interval of its probability.
        high: Upper end.
    """

    count: int
    total: int
    low: float
    high: float

    def __str__(self) -> str:
        """Percent, with the interval."""
        share = 100 * self.count / self.total if self.total else math.nan
        return f"{share:.0f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def share(count: int, total: int, level: float = LEVEL) -> Share:
    """A share with its Clopper-Pearson interval, which covers the truth at least so often.

    The lower end is the probability under which `count` or more would be seen in half of the cases
    that the level leaves; the upper end that for `count` or fewer.

    Source: Clopper & Pearson, The use of confidence or fiducial limits illustrated in the case of
    the binomial (1934).
    """
    tail = (1.0 - level) / 2.0
    low = 0.0 if count == 0 else _root(lambda p: 1.0 - _at_most(count - 1, total, p) - tail)
    high = 1.0 if count == total else _root(lambda p: tail - _at_most(count, total, p))
    return Share(count, total, low, high)


def _at_most(count: int, total: int, probability: float) -> float:
    """The probability of `count` successes or fewer."""
    return sum(
        math.comb(total, k) * probability**k * (1.0 - probability) ** (total - k)
        for k in range(count + 1)
    )


def _root(rising: Callable[[float], float]) -> float:
    """Where a rising function of a probability is 0, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2.0
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return (low + high) / 2.0


def counted(rows: Iterable[Mapping[str, Any]], part: str) -> Counter[str]:
    """How often each verdict of a part was given."""
    return Counter(row[part] for row in rows if row[part] is not None)


def opposite(right: str | None) -> str:
    """The verdict that is wrong; inconclusive is never wrong."""
    return "fail" if right == "pass" else "pass"


def grouped(
    rows: Sequence[Mapping[str, Any]],
) -> dict[tuple[str, str, float | None], list[Mapping[str, Any]]]:
    """Rows by pair, size and budget, in the order of the suite."""
    found: dict[tuple[str, str, float | None], list[Mapping[str, Any]]] = {}
    order = {name: place for place, name in enumerate(PAIRS)}
    for row in sorted(rows, key=lambda r: (order[r["pair"]], r["size"], r["budget"] or 0)):
        found.setdefault((row["pair"], row["size"], row["budget"]), []).append(row)
    return found


def halving_budget(shares: Sequence[tuple[float, float]]) -> float | None:
    """The budget at which a share is half of that at the smallest budget.

    Between two budgets the logarithms are joined by a line.

    Args:
        shares: Budgets in seconds, rising, each with its share.

    Returns:
        None where the share never falls to a half, or is 0 at the smallest budget.
    """
    if not shares or shares[0][1] == 0:
        return None
    wanted = shares[0][1] / 2
    for (before, above), (after, below) in zip(shares, shares[1:], strict=False):
        if below > wanted:
            continue
        if below == 0:
            return after
        steep = math.log(above / below) or 1.0
        return float(before * (after / before) ** (math.log(above / wanted) / steep))
    return None
