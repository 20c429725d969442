"""A forest plot: each ratio with its interval, its control beside it, and the margin as a band."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_COLOURS = {"pass": "#1b7f5c", "inconclusive": "#c9861a", "fail": "#b3261e"}
_INK, _MUTED, _BAND = "#1f2933", "#7b8794", "#e8f1ee"
_ROW, _CONTROL_BELOW = 1.0, 0.3
# The axis shows at least twice the margin, and cuts an interval that is wider than ten margins.
_LEAST_MARGINS, _MOST_MARGINS = 2.0, 10.0


def draw(value: Mapping[str, Any], path: Path) -> None:
    """Draw the rows of a parity run.

    Args:
        value: The JSON of `parity.py`.
        path: A picture file; its ending says which kind.
    """
    from matplotlib.figure import Figure

    rows = [row for row in value["rows"] if "latency" in row]
    figure = Figure(figsize=(9.6, 1.6 + 0.46 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    margin = 100 * value["margin"]
    axes.axvspan(-margin, margin, color=_BAND, zorder=0, linewidth=0)
    axes.axvline(0, color=_MUTED, linewidth=0.8, zorder=1)
    axes.axvline(margin, color=_MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    for place, row in enumerate(rows):
        _row(axes, -place * _ROW, row["latency"])
    _frame(axes, rows, margin)
    device = value["environment"]["device"]["name"]
    figure.suptitle(
        f"Folded student against untouched student, {device}",
        x=0.02,
        ha="left",
        fontsize=12,
        color=_INK,
        fontweight="bold",
    )
    _legend(figure)
    figure.savefig(path, dpi=160)


def _row(axes: Any, height: float, found: Mapping[str, Any]) -> None:
    colour = _COLOURS[found["verdict"]]
    control = found["control"]
    low, high = _percent(found["ci_low"]), _percent(found["ci_high"])
    axes.plot([low, high], [height, height], color=colour, linewidth=2.2, solid_capstyle="butt")
    axes.plot(_percent(found["ratio"]), height, "o", color=colour, markersize=6.5, zorder=3)
    below = height - _CONTROL_BELOW
    bounds = [_percent(control["ci_low"]), _percent(control["ci_high"])]
    axes.plot(bounds, [below, below], color=_MUTED, linewidth=1.0)
    axes.plot(
        _percent(control["ratio"]),
        below,
        "o",
        markersize=4.5,
        markerfacecolor="white",
        markeredgecolor=_MUTED,
        zorder=3,
    )


def _frame(axes: Any, rows: Sequence[Mapping[str, Any]], margin: float) -> None:
    """Labels left, figures right, a line between models."""
    edge = margin * _LEAST_MARGINS
    for row in rows:
        found = row["latency"]
        edge = max(edge, *(abs(_percent(found[end])) for end in ("ci_low", "ci_high")))
        edge = max(edge, *(abs(_percent(found["control"][end])) for end in ("ci_low", "ci_high")))
    edge = min(edge, margin * _MOST_MARGINS) * 1.08
    axes.set_xlim(-edge, edge)
    axes.set_ylim(-len(rows) + 0.35, 0.65)
    axes.set_yticks([-place for place in range(len(rows))])
    axes.set_yticklabels(_labels(rows), fontsize=9.5, color=_INK)
    axes.tick_params(length=0, colors=_INK, labelsize=9)
    axes.set_xlabel(
        "candidate / reference - 1, in percent (right: slower)", color=_INK, fontsize=9.5
    )
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_MUTED)
    for place, (above, row) in enumerate(zip(rows, rows[1:], strict=False)):
        if above["model"] != row["model"]:
            axes.axhline(-place - 0.62, color="#d9dfe5", linewidth=0.7, zorder=0)
    for place, row in enumerate(rows):
        axes.annotate(
            _figures(row["latency"]),
            (1.0, -place),
            xycoords=("axes fraction", "data"),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=_INK,
            family="monospace",
            annotation_clip=False,
        )


def _labels(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    # The runtime is named where there is more than one.
    several = len({row.get("runtime") for row in rows}) > 1
    return [
        f"{row['model'].replace('_', ' ')}, batch {row['batch']}"
        + (f", {row['runtime']}" if several else "")
        for row in rows
    ]


def _figures(found: Mapping[str, Any]) -> str:
    bounds = f"[{found['ci_low']:.3f}, {found['ci_high']:.3f}]"
    return f"{found['ratio']:.4f} {bounds} {found['reference_ms']:8.2f} ms  {found['verdict']}"


def _legend(figure: Any) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    control = Line2D([], [], color=_MUTED, marker="o", linewidth=1)
    control.set_markerfacecolor("white")
    control.set_label("control: reference / reference")
    ratio = Line2D([], [], color=_COLOURS["pass"], marker="o", linewidth=2)
    ratio.set_label("candidate / reference, 90 % interval")
    handles = [ratio, control, Patch(color=_BAND, label="within the margin")]
    figure.legend(handles=handles, loc="outside lower left", ncols=3, frameon=False, fontsize=9)


def _percent(ratio: float) -> float:
    return 100 * (ratio - 1)
