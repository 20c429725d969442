"""Legends stand beside what they name: inside the picture, outside the axes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import opdf_compile as opdf
from opdf_compile.distill.demo import training_plots
from opdf_compile.distill.run import curves
from opdf_compile.parity.report.latency_plots import legend_below, new_figure


def problems(figure: Any) -> list[str]:
    """Legends that lie over axes, or are cut off."""
    figure.draw_without_rendering()
    whole = figure.bbox
    found = []
    for axes in figure.axes:
        legend = axes.get_legend()
        if legend is None:
            continue
        box = legend.get_window_extent()
        if any(box.overlaps(other.get_window_extent()) for other in figure.axes):
            found.append(f"over the axes: {axes.get_title()}")
        if not (whole.x0 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0):
            found.append(f"cut off: {axes.get_title()}")
    return found


def entries() -> list[dict[str, Any]]:
    steps = [
        {"event": "step", "step": n, "loss": 2.0 / n, "lr": 0.1, "parts": {"a": 1 / n, "b": 1 / n}}
        for n in range(1, 9)
    ]
    return [*steps, {"event": "validation", "step": 8, "accuracy": 0.5}]


def test_the_curves_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    def kept(size: tuple[float, float]) -> Any:
        made.append(new_figure(size))
        return made[-1]

    monkeypatch.setattr(curves, "new_figure", kept)
    curves.plot_curves(entries(), "accuracy", 8, tmp_path / "curves.png")
    assert made[0].axes[0].get_legend() is not None
    assert problems(made[0]) == []


def test_the_parameters_of_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def kept(axes: Any, columns: int = 3) -> None:
        legend_below(axes, columns)
        seen.append(axes.figure)

    monkeypatch.setattr(training_plots, "legend_below", kept)
    model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Linear(32, 10))
    training_plots.plot_parameters(opdf.plan(model), model, tmp_path / "parameters.png")
    assert problems(seen[0]) == []


def test_a_legend_in_the_axes_is_found() -> None:
    figure = new_figure((4.0, 3.0))
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], label="curve")
    axes.legend(loc="upper right")
    axes.set_title("wrong")
    assert problems(figure) == ["over the axes: wrong"]
