"""One figure of a contest: every contender's gains over plain, at equal steps and equal time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from opdf_compile.distill.advise.advice_plot import write_picture
from opdf_compile.distill.advise.contest.ruling import Basis, Ruling, Standing
from opdf_compile.parity import STYLE, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Blue and vermilion stay apart for colour-blind readers and in print; more steps are neither.
_COLOURS = {"time": "#0072b2", "steps": "#d55e00", "longer": "#555555"}
_FAINT = "#b0b0b0"
_ROW = 0.45


def plot_ruling(ruling: Ruling, path: Path) -> None:
    """Draw the gains.

    Args:
        ruling: What was found.
        path: A .png, .svg or .pdf file; written whole or not at all.

    Raises:
        InputError: It is another kind of file.
        ArtefactError: It cannot be written.
    """
    write_picture(path, lambda: draw_ruling(ruling))


def draw_ruling(ruling: Ruling) -> Figure:
    """A row for each duel, from the top down: a dot per seed, the mean with its interval."""
    import matplotlib as mpl

    rows = list(_rows(ruling))
    with mpl.rc_context(STYLE):
        figure = new_figure((9.0, 1.6 + _ROW * len(rows)))
        axes = figure.subplots()
        axes.axvline(0.0, color=_FAINT, lw=1)
        for place, (_label, kind, standing, basis) in enumerate(rows):
            _gains(axes, place, _COLOURS[kind], standing, basis)
        axes.set_yticks(range(len(rows)), [label for label, *_ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_title(f"gain in {ruling.metric} over plain, seed by seed, and the 95 % interval")
        axes.set_xlabel("right of the line is better")
    return figure


def _rows(ruling: Ruling) -> Iterator[tuple[str, str, Standing, Basis]]:
    for standing in ruling.contenders:
        for basis in reversed(ruling.bases):
            yield f"{standing.name}, equal {basis}", basis, standing, basis
    for standing in ruling.longer:
        yield f"{standing.name}, more steps", "longer", standing, "steps"


def _gains(axes: Axes, place: int, colour: str, standing: Standing, basis: Basis) -> None:
    found = standing.bouts[basis].duel.comparison
    if found is None:
        axes.text(0.0, place, "no seed on which neither diverged", va="center", ha="center")
        return
    dots = found.differences
    axes.plot(dots, [place] * len(dots), "o", color=colour, alpha=0.35, ms=4)
    if math.isfinite(found.low):
        axes.plot([found.low, found.high], [place, place], color=colour, lw=3)
    axes.plot([found.mean], [place], "D", color=colour)
