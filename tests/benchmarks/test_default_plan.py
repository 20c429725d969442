"""The table of the default plan in docs/performance.md: its JSON, and plans that are made anew."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from bench.laps import Setting

import opdf_compile as opdf

ROOT = Path(__file__).resolve().parents[2]
RUN = ROOT / "benchmarks/results/training_step-default-plan.json"


def shown() -> dict[str, list[str]]:
    """The cells of the table by student."""
    page = (ROOT / "docs/performance.md").read_text()
    section = page.split("### The default plan")[1].split("\n## ")[0]
    lines = re.findall(r"^\| (\w+) \| (\d.*) \|$", section, flags=re.MULTILINE)
    return {name: cells.split(" | ") for name, cells in lines}


def test_the_table_shows_the_committed_run() -> None:
    rows = [row for row in json.loads(RUN.read_text())["rows"] if row["form"] == "default"]
    measured = {
        row["model"]: [
            f"{row['scale']:.2f}",
            f"{row['ratio']:.2f}",
            f"{row['ci_low']:.2f}-{row['ci_high']:.2f}",
        ]
        for row in rows
    }
    assert {name: [c[1], c[3], c[4]] for name, c in shown().items()} == measured
    assert {row["rounds"] for row in rows} == {9}


@pytest.mark.parametrize(
    "name",
    ["mlp", *(pytest.param(n, marks=pytest.mark.slow) for n in ("resnet32", "mobilenet", "vit"))],
)
def test_the_table_shows_what_is_planned(name: str) -> None:
    _student, traced, plan = Setting(name, ("plain",), default_plan=True).planned()
    usual = opdf.plan(traced, cores=3)
    assert plan.overhead is not None and usual.overhead is not None
    planned, scale, predicted, _ratio, _interval, three = shown()[name]
    assert planned == f"{len(plan.entries)} of {len(usual.entries)}"
    assert scale == f"{plan.scale:.2f}" and predicted == f"{plan.overhead:.2f}"
    assert float(three) == pytest.approx(usual.overhead, rel=0, abs=0.5 * 10 ** -_decimals(three))


def _decimals(text: str) -> int:
    return len(text.partition(".")[2])
