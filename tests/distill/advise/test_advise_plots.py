"""The figure of a race shows what was found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from made_advice import BASE, BETTER, advice

from opdf_compile.distill.advise.advice import Advice, Tried
from opdf_compile.distill.advise.advice_plot import draw, plot_advice


def shown(found: Advice) -> Advice:
    """With a tuning: three rates, one of them tried with two decays and one diverged."""
    rows = [
        Tried(1, "md", 0.01, 0.0, 30, 1, 0.70),
        Tried(1, "md", 0.01, 0.1, 30, 1, 0.72),
        Tried(1, "hyperball", 0.1, 0.0, 30, 1, 0.80),
        Tried(1, "hyperball", 1.0, 0.0, 30, 1, None),
        Tried(2, "hyperball", 0.1, 0.0, 60, 1, 0.85),
    ]
    plain = [replace(row, method="plain") for row in rows]
    return replace(
        found,
        plain=replace(found.plain, tried=tuple(plain)),
        over=replace(found.over, tried=tuple(rows)),
    )


def test_figure_holds_the_best_of_each_rate_and_every_pair() -> None:
    found = shown(advice(list(BASE), list(BETTER)))
    tuning, gains = draw(found).axes
    drawn = [line.get_xydata().tolist() for line in tuning.lines if len(line.get_xdata())]
    assert drawn == [[[0.01, 0.72], [0.1, 0.80]], [[0.1, 0.85]]] * 2
    assert tuning.get_xscale() == "log"
    # The line at zero, the pairs, the interval, the mean.
    _zero, pairs, interval, mean = gains.lines
    assert found.comparison is not None
    assert tuple(pairs.get_xdata()) == found.comparison.differences
    assert list(interval.get_xdata()) == [found.comparison.low, found.comparison.high]
    assert list(mean.get_xdata()) == [found.comparison.mean]


def test_lower_is_better_takes_the_lowest() -> None:
    found = replace(shown(advice(list(BASE), list(BETTER))), higher_is_better=False)
    first = draw(found).axes[0].lines[0]
    assert first.get_xydata().tolist() == [[0.01, 0.70], [0.1, 0.80]]


def test_a_race_in_which_all_diverged_is_drawn_too(tmp_path: Path) -> None:
    found = advice([None] * 4, [None] * 4)
    gains = draw(found).axes[1]
    assert [text.get_text() for text in gains.texts] == ["no pair without a diverged run"]
    plot_advice(found, tmp_path / "advice.png")
    assert (tmp_path / "advice.png").read_bytes().startswith(b"\x89PNG")
    assert [file.name for file in tmp_path.iterdir()] == ["advice.png"]
