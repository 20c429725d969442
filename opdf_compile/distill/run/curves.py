"""The curves of a run: losses, the validation metric, the learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from opdf_compile.parity import STYLE, legend_below, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Entry = dict[str, Any]
# Colours that stay apart for colour-blind readers (Okabe and Ito 2008).
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_INK = "#222222"
_WINDOW = 0.02


def plot_curves(entries: Sequence[Entry], metric: str, kept_step: int, path: Path) -> None:
    """Draw the curves of a run's log."""
    import matplotlib

    steps = [entry for entry in entries if entry["event"] == "step"]
    validations = [entry for entry in entries if entry["event"] == "validation"]
    with matplotlib.rc_context(STYLE):
        figure = new_figure((13.0, 4.2))
        left, middle, right = figure.subplots(1, 3, width_ratios=(1.25, 1.25, 0.8))
        _losses(left, steps)
        _metric(middle, validations, metric, kept_step)
        _rates(right, steps)
        for axes in (left, middle, right):
            axes.set_xlabel("optimizer step")
            axes.margins(x=0.02)
            axes.xaxis.get_major_locator().set_params(integer=True)
        figure.savefig(path, metadata={"Software": "opdf-compile"})


def _losses(axes: Axes, steps: Sequence[Entry]) -> None:
    """Each logged value faint, their running mean on top; the parts before their weights."""
    places = np.array([entry["step"] for entry in steps])
    names = list(steps[0]["parts"]) if steps else []
    curves = {"weighted sum": np.array([entry["loss"] for entry in steps])}
    if len(names) > 1:
        curves.update({n: np.array([entry["parts"][n] for entry in steps]) for n in names})
    for place, (name, values) in enumerate(curves.items()):
        colour = _COLOURS[place % len(_COLOURS)]
        axes.plot(places, values, color=colour, alpha=0.25, linewidth=0.8)
        width = 2.2 if place == 0 else 1.5
        axes.plot(places, _smooth(values), color=colour, linewidth=width, label=name)
    if all((values > 0).all() for values in curves.values()):
        axes.set_yscale("log")
    axes.set_title("training loss (running mean)")
    if curves and len(curves) > 1:
        legend_below(axes)


def _metric(axes: Axes, validations: Sequence[Entry], metric: str, kept_step: int) -> None:
    axes.set_title(f"validation {metric}")
    if not validations:
        axes.text(0.5, 0.5, "no validation part", ha="center", transform=axes.transAxes)
        return
    places = [entry["step"] for entry in validations]
    values = [entry[metric] for entry in validations]
    axes.plot(places, values, color=_COLOURS[0], marker="o", markersize=4, linewidth=1.8)
    if kept_step in places:
        best = values[places.index(kept_step)]
        axes.plot([kept_step], [best], "o", ms=13, mfc="none", mec=_COLOURS[1], mew=1.8)
        axes.set_title(f"validation {metric} (ring: these weights ship)")


def _rates(axes: Axes, steps: Sequence[Entry]) -> None:
    axes.plot([e["step"] for e in steps], [e["lr"] for e in steps], color=_INK, linewidth=1.6)
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 3))
    axes.set_title("learning rate")


def _smooth(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A running mean over the last entries, shorter at the start."""
    width = max(1, round(_WINDOW * len(values)))
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - width)
    means: np.ndarray[Any, Any] = (sums[ends] - sums[starts]) / (ends - starts)
    return means
