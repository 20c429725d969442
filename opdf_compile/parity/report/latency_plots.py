"""The plots of the latency verdict: what was timed, and what the ratio's interval says.

Left, the distribution of the blocks' times, candidate against reference. Right, the ratio of each
independently created group of sessions, the interval over all of them, and the margin.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from opdf_compile.parity.latency.latency_result import LatencyResult, ShapeResult
from opdf_compile.parity.latency.ratio_interval import location
from opdf_compile.parity.latency.shape_option import shape_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Blue, vermilion and grey stay apart for colour-blind readers and in print.
_REFERENCE, _CANDIDATE, _CONTROL = "#0072b2", "#d55e00", "#7f7f7f"
_BAND, _INK, _FAINT = "#e8f3ec", "#222222", "#b0b0b0"
_VERDICT_INK = {"pass": "#1a7f37", "fail": "#cf222e", "inconclusive": "#9a6700"}
_BINS = 48
STYLE: Any = {
    "font.size": 10,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
    "svg.hashsalt": "opdf",
}


def latency_figure(result: LatencyResult, shapes: Sequence[ShapeResult]) -> Figure:
    """A row of two plots for each of these shapes of a measurement."""
    figure = new_figure((11.0, 4.6 * len(shapes)))
    rows = figure.subfigures(len(shapes), 1, squeeze=False)[:, 0]
    for part, shape in zip(rows, shapes, strict=True):
        left, right = part.subplots(1, 2, width_ratios=(1.0, 1.15))
        _draw_times(left, shape)
        _draw_ratios(right, shape, result.margin or 0.0)
        part.suptitle(
            f"latency on {result.device}, {shape_text(shape.shape)}: {shape.verdict}",
            x=0.012,
            ha="left",
            fontsize=13,
            fontweight="bold",
            color=_VERDICT_INK.get(shape.verdict, _INK),
        )
    return figure


def new_figure(size: tuple[float, float]) -> Figure:
    """A figure of our own, which leaves the caller's pyplot state and backend alone."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def legend_below(axes: Axes, columns: int = 3) -> None:
    """The legend under the axes' own label, where no curve can run through it."""
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=columns, fontsize=9, frameon=False
    )


def _draw_times(axes: Axes, result: ShapeResult) -> None:
    times = {role: values.ravel() * 1e3 for role, values in result.seconds.items()}
    both = np.concatenate([times["reference"], times["candidate"]])
    # A few blocks that met another process would squeeze all others into one bar.
    low, high = float(both.min()), float(np.quantile(both, 0.97))
    bins = np.linspace(low, max(high, low * 1.001), _BINS).tolist()
    shown = (
        ("reference", _REFERENCE, result.reference_ms),
        ("candidate", _CANDIDATE, result.candidate_ms),
    )
    for role, colour, median in shown:
        values = np.clip(times[role], bins[0], bins[-1])  # type: ignore[index]
        axes.hist(values, bins=bins, color=colour, alpha=0.28)
        axes.hist(values, bins=bins, color=colour, histtype="step", linewidth=1.4)
        axes.axvline(
            median,
            color=colour,
            linewidth=1.6,
            linestyle=(0, (4, 2)),
            label=f"{role}, median {median:.4g} ms",
        )
    beyond = int((both > bins[-1]).sum())
    slow = f" ({beyond} slower blocks in the last bar)" if beyond else ""
    axes.set_title(f"time of one run, {both.size} blocks")
    axes.set_xlabel(f"milliseconds{slow}")
    axes.set_ylabel("blocks")
    legend_below(axes, 2)


def _draw_ratios(axes: Axes, result: ShapeResult, margin: float) -> None:
    logs = {role: np.log(values) for role, values in result.seconds.items()}
    groups = logs["reference"].shape[0]
    control = result.control
    axes.axvspan(1 - margin, 1 + margin, color=_BAND, zorder=0)
    axes.axvline(1.0, color=_FAINT, linewidth=1.0, zorder=1)
    for role, colour, offset, marker in (
        ("control", _CONTROL, 0.16, "o"),
        ("candidate", _CANDIDATE, -0.16, "o"),
    ):
        ratios = np.exp(location(logs[role] - logs["reference"]))  # type: ignore[index]
        axes.scatter(
            ratios,
            np.arange(1, groups + 1) + offset,
            s=26,
            color=colour,
            marker=marker,
            facecolors="white" if role == "control" else colour,
            linewidths=1.3,
            zorder=3,
        )
    rows = (
        ("candidate / reference", _CANDIDATE, result.ratio, result.ci_low, result.ci_high),
        ("reference / reference", _CONTROL, control.ratio, control.low, control.high),
    )
    # The intervals stand below the groups, so that the eye ends on them.
    step = max(1.0, groups * 0.15)
    for index, (label, colour, ratio, low, high) in enumerate(rows):
        place = groups + 0.6 + step * (index + 0.68)
        axes.plot(
            [low, high],
            [place, place],
            color=colour,
            linewidth=5,
            solid_capstyle="butt",
            zorder=2,
        )
        axes.scatter([ratio], [place], s=46, color="white", edgecolors=colour, zorder=4)
        axes.annotate(
            f"{label} {ratio:.3f} [{low:.3f}, {high:.3f}]",
            xy=(0.985, place),
            xycoords=("axes fraction", "data"),
            xytext=(0, 11),
            textcoords="offset points",
            ha="right",
            va="center",
            color=colour,
            fontsize=9,
        )
    axes.axhline(groups + 0.6, color=_FAINT, linewidth=0.8)
    axes.set_ylim(groups + 0.7 + 2 * step, 0.3)
    axes.set_yticks(range(1, groups + 1, max(1, round(groups / 8))))
    axes.set_ylabel("group of sessions")
    axes.set_xlabel(f"ratio to the reference (shaded: margin ±{margin:g})")
    axes.set_title("ratio per group, and the 90 % intervals")
    # The margin on both sides and every interval, with room around them.
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 1 - 1.6 * margin), max(high, 1 + 1.6 * margin))
