"""The demo's two figures: how both students trained, and what they hold while they do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from opdf_compile.distill.demo.outcomes import METHODS, NAMES, Method, Outcomes
from opdf_compile.parity import STYLE, legend_below, new_figure
from opdf_compile.planning import Plan

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Blue and vermilion stay apart for colour-blind readers and in print.
_COLOURS: Mapping[Method, str] = {"plain": "#0072b2", "overparam": "#d55e00"}
_MARKERS: Mapping[Method, str] = {"plain": "o", "overparam": "s"}
_INK = "#222222"


def plot_training(race: Outcomes, path: Path) -> None:
    """Draw loss and validation accuracy by epoch, and the choice of the learning rates."""
    from matplotlib.ticker import LogLocator, NullFormatter

    with _figure(path, (13.0, 4.4)) as figure:
        left, middle, right = figure.subplots(1, 3)
        for method in METHODS:
            curves = getattr(race, method).curves
            _lines(left, method, np.array([c.loss for c in curves]))
            _lines(middle, method, 100 * np.array([c.accuracy for c in curves]))
            _choice(right, method, race)
        left.set_yscale("log")
        left.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        left.yaxis.set_major_formatter("{x:g}")
        left.yaxis.set_minor_formatter(NullFormatter())
        left.set_title("training loss (labels and teacher)")
        middle.set_title("validation accuracy, %")
        for axes in (left, middle):
            axes.set_xlabel("epoch")
            axes.xaxis.get_major_locator().set_params(integer=True)
        legend_below(left, 2)
        middle.set_ylim(*_window(middle))
        right.set_xscale("log")
        right.set_title("validation accuracy by learning rate, %")
        right.set_xlabel("peak learning rate (ring: the choice)")
        _rate_ticks(right, race)
        right.set_ylim(*_window(right))
        _mark_below(right, race)


def plot_parameters(plan: Plan, student: nn.Module, path: Path) -> None:
    """Draw the parameters of each weight, in training and deployed."""
    rows = [(e.key, e.cost.parameters, e.deployed) for e in plan.entries]
    total = sum(p.numel() for p in student.parameters())
    rest = total - sum(deployed for _key, _trained, deployed in rows)
    rows.append(("all others", rest, rest))
    trained_total = sum(trained for _key, trained, _deployed in rows)
    places = np.arange(len(rows))
    with _figure(path, (8.4, 1.6 + 0.72 * len(rows))) as figure:
        axes = figure.subplots()
        for offset, column, colour, label in (
            (-0.2, 1, _COLOURS["overparam"], f"in training, {trained_total:,} in all"),
            (0.2, 2, _COLOURS["plain"], f"deployed, {total:,} in all"),
        ):
            values = [int(row[column]) for row in rows]
            bars = axes.barh(places + offset, values, 0.36, color=colour, label=label)
            axes.bar_label(bars, [f"{v:,}" for v in values], padding=4, fontsize=9, color=_INK)
        axes.set_yticks(places, [row[0] for row in rows])
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set_xlabel("parameters")
        axes.set_title("parameters per layer")
        legend_below(axes, 2)


@contextmanager
def _figure(path: Path, size: tuple[float, float]) -> Iterator[Figure]:
    """A figure that is saved at the end."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        figure = new_figure(size)
        yield figure
        figure.savefig(path, metadata={"Software": "opdf-compile"})


def _lines(axes: Axes, method: Method, values: np.ndarray[Any, Any]) -> None:
    """One thin line per seed and a thick one for their mean; `values` is (seeds, epochs)."""
    epochs = np.arange(1, values.shape[1] + 1)
    colour, marker = _COLOURS[method], _MARKERS[method]
    for line in values:
        axes.plot(epochs, line, color=colour, alpha=0.3, linewidth=0.9)
    label = f"{NAMES[method]} (mean of {len(values)})"
    style: dict[str, Any] = {"color": colour, "linewidth": 2.2, "label": label}
    axes.plot(epochs, values.mean(0), marker=marker, markersize=4, **style)


def _choice(axes: Axes, method: Method, race: Outcomes) -> None:
    outcome, colour = getattr(race, method), _COLOURS[method]
    rates = sorted(outcome.validation)
    means = {rate: 100 * float(np.mean(outcome.validation[rate])) for rate in rates}
    for rate in rates:
        values = 100 * np.array(outcome.validation[rate])
        axes.plot([rate, rate], [values.min(), values.max()], color=colour, alpha=0.35, lw=3)
    line = [means[rate] for rate in rates]
    axes.plot(rates, line, color=colour, marker=_MARKERS[method], markersize=5, lw=1.6)
    axes.plot([outcome.rate], [means[outcome.rate]], "o", ms=13, mfc="none", mec=colour, mew=1.8)


def _window(axes: Axes) -> tuple[float, float]:
    """The upper part of an axis of per cents: early epochs and diverged runs would flatten it."""
    shown = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in axes.lines])
    middle = float(np.median(shown[np.isfinite(shown)]))
    return max(0.0, min(90.0, middle - 8.0)), 100.5


def _mark_below(axes: Axes, race: Outcomes) -> None:
    """Say how low the rates are that lie below the window."""
    low = axes.get_ylim()[0]
    for method in METHODS:
        for rate, values in getattr(race, method).validation.items():
            mean = 100 * float(np.mean(values))
            if mean < low:
                axes.annotate(
                    f"{mean:.0f} ▼",
                    xy=(rate, low),
                    xytext=(0, 6 if method == "plain" else 20),
                    textcoords="offset points",
                    ha="center",
                    color=_COLOURS[method],
                    fontsize=9,
                )


def _rate_ticks(axes: Axes, race: Outcomes) -> None:
    rates = sorted(race.plain.validation)
    axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
    axes.minorticks_off()
