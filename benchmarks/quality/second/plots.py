"""Two pictures side by side: what decides in each regime, and every method at equal steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from quality.second.plan import PRIMARY, REGIMES
from quality.second.rows import Row
from quality.second.tables import every_trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_REGIMES = {
    "fixed": "equal steps",
    "time": "equal time",
    "saturated": "as many steps as plain can use",
}


def differences(rows: Sequence[Row], path: Path) -> None:
    """Draw the differences to plain distillation of the student `deep`, with Holm's intervals.

    Args:
        rows: Of the confirmation.
        path: The picture.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shown = [
        row
        for row in every_trial(rows)
        if (row.outcome.student, row.outcome.loss, row.outcome.baseline)
        == ("deep", "distil", "plain")
    ]
    mine = [row for row in shown if row.outcome.method == PRIMARY]
    others = [row for row in shown if row.outcome.regime == "fixed"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 6), layout="constrained")
    regimes = [name for name in REGIMES if any(row.outcome.regime == name for row in mine)]
    tasks = list(dict.fromkeys(row.outcome.task for row in mine))
    for name in regimes:
        of = [row for row in mine if row.outcome.regime == name]
        places = [tasks.index(row.outcome.task) + 0.18 * REGIMES.index(name) for row in of]
        _intervals(left, of, places, _REGIMES[name])
    _axis(left, tasks, f"{PRIMARY}: all regimes")
    methods = list(dict.fromkeys(row.outcome.method for row in others))
    every = list(dict.fromkeys(row.outcome.task for row in others))
    for number, task in enumerate(every):
        of = [row for row in others if row.outcome.task == task]
        shift = 0.6 * (number - (len(every) - 1) / 2) / max(1, len(every))
        _intervals(right, of, [methods.index(row.outcome.method) + shift for row in of], task)
    _axis(right, methods, "every method, at equal steps")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _intervals(axis: Axes, rows: Sequence[Row], places: Sequence[float], label: str) -> None:
    centres = [100 * row.difference for row in rows]
    ends = [
        [100 * (row.difference - row.ci_low) for row in rows],
        [100 * (row.ci_high - row.difference) for row in rows],
    ]
    axis.errorbar(centres, places, xerr=ends, fmt="o", markersize=4, linewidth=1.2, label=label)


def _axis(axis: Axes, names: Sequence[str], title: str) -> None:
    axis.axvline(0, color="0.3", linewidth=1)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("points of test accuracy above plain distillation", fontsize=9)
    axis.grid(axis="x", alpha=0.3)
    # Below, where it covers no interval.
    axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=3, frameon=False)
