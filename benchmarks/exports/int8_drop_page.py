"""The tables of int8 drops, from the JSON of int8_drop.py.

The drop of a trained student is its accuracy in float32 less that in int8, in points of 100. What
a method loses beyond plain is the mean over seeds of its drop less plain's, with a 95 % t interval
and the p-value of sign flips, neither corrected for the number of rows.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from bench.markdown import filled, table
from quality.second.methods import CENTRES
from quality.statistics import Comparison, compare

from exports.int8_students import MODELS, REGIMES, SCALES, TRAINING
from opdf_compile.files.atomic import atomic_write

RESULTS = Path(__file__).parents[1] / "results" / "int8_drop.json"
PLAIN = "plain"
Row = Mapping[str, Any]
_POINTS = 100


@dataclass(frozen=True)
class Summary:
    """A method in one regime and model, with one kind of scales.

    Attributes:
        regime: Of the training.
        model: The student.
        method: Its parametrization.
        scales: "channel" or "tensor".
        float32: Mean accuracy before, in points.
        drops: What int8 takes, in points, by seed.
        reach: Median of `reach` over seeds.
        beyond: The drops against those of plain; None for plain itself.
    """

    regime: str
    model: str
    method: str
    scales: str
    float32: float
    drops: tuple[float, ...]
    reach: float
    beyond: Comparison | None

    def words(self) -> tuple[str, ...]:
        """Cells for people: as in the page, without the reach."""
        keys = (self.regime, self.model, self.method, self.scales)
        return (*keys, f"{self.float32:.1f}", drop_words(self), beyond_words(self))


def summaries(rows: Sequence[Row]) -> list[Summary]:
    """What the rows say, over the seeds that plain and the method both have.

    One seed gives no interval: then nothing is said.
    """
    made: list[Summary] = []
    for regime, model in itertools.product(REGIMES, MODELS):
        ours = [row for row in rows if (row["regime"], row["model"]) == (regime, model)]
        for scales in SCALES:
            made += _of_methods(ours, scales)
    return made


def _of_methods(rows: Sequence[Row], scales: str) -> Iterator[Summary]:
    plain = {row["seed"]: _drop(row, scales) for row in rows if row["method"] == PLAIN}
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method and row["seed"] in plain]
        if len(own) < 2:
            continue
        drops = tuple(_drop(row, scales) for row in own)
        beside = [plain[row["seed"]] for row in own]
        yield Summary(
            own[0]["regime"],
            own[0]["model"],
            method,
            scales,
            _POINTS * mean(row["float32"] for row in own),
            drops,
            median(row["reach"] for row in own),
            None if method == PLAIN else compare(drops, beside),
        )


def _drop(row: Row, scales: str) -> float:
    return float(_POINTS * (row["float32"] - row["int8"][scales]))


def drop_words(found: Summary) -> str:
    """The mean drop and the largest one."""
    return f"{_signed(mean(found.drops))} (at most {_signed(max(found.drops))})"


def beyond_words(found: Summary) -> str:
    """What it loses beyond plain, the interval, bold if zero is outside, and p of sign flips.

    Both are there for every row: a few students that collapse make a wide t interval.
    """
    if found.beyond is None:
        return "-"
    centre, low, high = found.beyond.difference, found.beyond.ci_low, found.beyond.ci_high
    span = f"{_signed(low, 2)} to {_signed(high, 2)}" if math.isfinite(low) else "no interval"
    text = f"{_signed(centre, 2)} ({span})"
    shown = f"**{text}**" if low > 0 or high < 0 else text
    return f"{shown}, p = {found.beyond.p_sign_flip:.2g}"


def _signed(points: float, digits: int = 1) -> str:
    """With a sign, but for what rounds to none."""
    text = f"{points:+.{digits}f}"
    return text if float(text) else text[1:]


def write_page(page: Path) -> None:
    """Put the tables of the newest results into their places in the page."""
    value = json.loads(RESULTS.read_text(encoding="utf-8"))
    with atomic_write(page) as temporary:
        text = filled(page.read_text(encoding="utf-8"), tables_of(value))
        temporary.write_text(text, encoding="utf-8")


def tables_of(value: Mapping[str, Any]) -> dict[str, str]:
    """The tables by the name of their place.

    Args:
        value: The JSON of int8_drop.py.
    """
    made = {
        "quantised-conditions": [_conditions(value)],
        "quantised-drops": _drops(summaries(value["rows"])),
    }
    return {name: "\n".join(lines).strip() for name, lines in made.items()}


def _conditions(value: Mapping[str, Any]) -> str:
    found, steps = value["environment"], value["steps"]
    regimes = "; ".join(
        f"*{name}*: rate {trial.learning_rate(CENTRES):.2g}, "
        f"decay {trial.weight_decay(CENTRES, steps):.2g}, "
        f"{len({row['seed'] for row in value['rows'] if row['regime'] == name})} seeds"
        for name, trial in REGIMES.items()
    )
    return (
        f"{TRAINING} handwritten digits to train on, 1,000 to test, {steps} steps of SGD "
        f"({regimes}); torch {found['versions']['torch']}, onnxruntime "
        f"{found['versions']['onnxruntime']}, {found['date']}."
    )


def _drops(found: Sequence[Summary]) -> Iterator[str]:
    """A line for each method, the two kinds of scales side by side."""
    by_scales = [[s for s in found if s.scales == scales] for scales in SCALES]
    yield from table(
        (
            *("training", "student", "method", "float32", "reach"),
            *("drop, a scale per channel", "beyond plain"),
            *("drop, a scale per tensor", "beyond plain"),
        ),
        (
            (
                *(one.regime, one.model, f"`{one.method}`"),
                *(f"{one.float32:.1f}", f"{one.reach:.0f}"),
                *(drop_words(one), beyond_words(one)),
                *(drop_words(other), beyond_words(other)),
            )
            for one, other in zip(*by_scales, strict=True)
        ),
    )
