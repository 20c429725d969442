"""One figure of a race: what each side's rates reached, and the paired gains."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from opdf_compile.distill.advise.advice import Advice, Side
from opdf_compile.errors import InputError
from opdf_compile.parity import STYLE, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Blue and vermilion stay apart for colour-blind readers and in print.
_PLAIN, _OVER, _FAINT = "#0072b2", "#d55e00", "#b0b0b0"
_SHADES: Mapping[int, float] = {1: 0.3, 2: 0.6, 3: 1.0}


def plot_advice(advice: Advice, path: Path) -> None:
    """Draw the tuning of both sides and the final comparison.

    Args:
        advice: What was found.
        path: A .png, .svg or .pdf file; written whole or not at all.

    Raises:
        InputError: It is another kind of file.
        ArtefactError: It cannot be written.
    """
    write_picture(path, lambda: draw(advice))


def write_picture(path: Path, draw: Callable[[], Figure]) -> None:
    """Write what is drawn, whole or not at all; the name is looked at before anything is drawn.

    Raises:
        InputError: It is another kind of file than .png, .svg or .pdf.
        ArtefactError: It cannot be written.
    """
    from opdf_compile.files import atomic_write

    require_picture(path)
    figure = draw()
    with atomic_write(path) as temporary:
        figure.savefig(temporary)


def require_picture(path: Path) -> None:
    """Refuse a file that no picture can be written to.

    Raises:
        InputError: Its name ends otherwise than in .png, .svg or .pdf.
    """
    from opdf_compile.parity import SUFFIXES

    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"the plot {path} is no {', '.join(SUFFIXES)} file; give such a name")


def draw(advice: Advice) -> Figure:
    """The figure: the tuning on the left, the paired gains on the right."""
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        figure = new_figure((11.0, 5.0))
        left, right = figure.subplots(1, 2)
        _tuning(left, advice)
        _gains(right, advice)
    return figure


def _tuning(axes: Axes, advice: Advice) -> None:
    """The best score of each rate in each rung, over decays and methods."""
    shown: list[float] = []
    for side, colour, name in (
        (advice.plain, _PLAIN, "plain"),
        (advice.over, _OVER, "over-parameterised"),
    ):
        for rung, alpha in _SHADES.items():
            rates = _best_by_rate(side, rung, advice.higher_is_better)
            label = f"{name}, rung {rung}" if rates else None
            values = list(rates.values())
            axes.plot(list(rates), values, "o-", color=colour, alpha=alpha, ms=4, label=label)
            shown += values
    axes.set_xscale("log")
    axes.set_title(f"tuning: best {advice.metric} at each learning rate")
    axes.set_xlabel("learning rate")
    axes.set_ylim(*_window(shown, advice.higher_is_better))
    if shown:
        axes.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.16))


def _best_by_rate(side: Side, rung: int, higher_is_better: bool) -> dict[float, float]:
    best: dict[float, float] = {}
    choose = max if higher_is_better else min
    for row in side.tried:
        if row.rung == rung and row.score is not None:
            best[row.lr] = choose(best.get(row.lr, row.score), row.score)
    return dict(sorted(best.items()))


def _window(values: list[float], higher_is_better: bool) -> tuple[float, float]:
    """Limits that hold the better three quarters: rates far too high would flatten the rest."""
    if not values:
        return 0.0, 1.0
    ordered = sorted(values, reverse=higher_is_better)
    best, worst = ordered[0], ordered[math.ceil(0.75 * (len(ordered) - 1))]
    room = 0.08 * (abs(best - worst) or 1.0)
    return min(best, worst) - room, max(best, worst) + room


def _gains(axes: Axes, advice: Advice) -> None:
    """One dot per pair, and the mean with its interval."""
    axes.axvline(0.0, color=_FAINT, lw=1)
    axes.set_title(f"final: gain in {advice.metric} over plain, pair by pair")
    axes.set_xlabel(f"gain of {advice.over.method} (right of the line is better)")
    axes.set_yticks([])
    found = advice.comparison
    if found is None:
        axes.text(0.5, 0.5, "no pair without a diverged run", transform=axes.transAxes, ha="center")
        return
    count = len(found.differences)
    axes.plot(found.differences, [1 + place / count for place in range(count)], "o", color=_OVER)
    if math.isfinite(found.low):
        axes.plot([found.low, found.high], [0.5, 0.5], color=_OVER, lw=3)
    axes.plot([found.mean], [0.5], "D", color=_OVER)
    axes.annotate("mean, 95 % interval", (found.mean, 0.5), (0, 10), textcoords="offset points")
    axes.set_ylim(0.2, 2.2)
