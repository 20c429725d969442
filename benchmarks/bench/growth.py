"""How a time grows with a size: the exponent of a power law, and a plot of it.

t = c n^s  ->  log t = log c + s log n;  s is the slope of the least-squares line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from opdf_compile.files.atomic import atomic_write

_GREYS = ("#7f7f7f", "#b0b0b0")
_COLOURS = ("#56b4e9", "#009e73", "#e69f00", "#d55e00")
_INK = "#222222"

# Title of a panel -> (sizes, seconds by stage, slope by stage).
Curves = Mapping[str, tuple[Sequence[int], Mapping[str, Sequence[float]], Mapping[str, float]]]


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The slope of log seconds over log size.

    Args:
        sizes: At least two different ones, above 0.
        seconds: Above 0.
    """
    slope, _constant = np.polyfit(np.log(sizes), np.log(seconds), 1)
    return float(slope)


def plot(
    curves: Curves, path: Path, *, size: str, seconds: str, others: int, alike: bool = False
) -> None:
    """Draw sizes against seconds, one panel for each title, with a line of slope 1.

    Args:
        curves: What was measured.
        path: A .png, replaced in one step.
        size: What the sizes count.
        seconds: What kind of seconds they are.
        others: How many curves, the first of each panel, are grey: what others take.
        alike: Panels are compared with each other, on one scale.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        1,
        len(curves),
        figsize=(7.0 * len(curves), 4.2),
        squeeze=False,
        sharey=alike,
        layout="constrained",
    )
    colours = (*_GREYS[:others], *_COLOURS)
    for panel, (name, (sizes, stages, slopes)) in zip(panels[0], curves.items(), strict=True):
        for colour, (stage, times) in zip(colours, stages.items(), strict=False):
            label = f"{stage}, slope {slopes[stage]:.2f}"
            panel.loglog(sizes, times, "o-", color=colour, label=label)
        _decorate(panel, name, sizes, max(s for row in stages.values() for s in row))
        panel.set_xlabel(size)
        panel.set_ylabel(seconds)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    pyplot.close(figure)


def _decorate(panel: Any, name: str, sizes: Sequence[int], top: float) -> None:
    """A title, ticks, and a dashed line of slope 1 above the curves."""
    line = [2 * top * size / sizes[-1] for size in sizes]
    panel.loglog(sizes, line, "--", color=_INK, linewidth=1, label="slope 1")
    panel.set_xticks(list(sizes), labels=[str(size) for size in sizes])
    panel.minorticks_off()
    panel.set_title(name, loc="left", color=_INK)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
