"""The zoo with branches: a small architecture through every check, and checks that fail."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sites import Stack
from torch import nn
from zoo.architecture import Architecture
from zoo.architectures import ARCHITECTURES
from zoo.checks import CheckFailed
from zoo.command import main
from zoo.sites_journey import STEPS, SitesJourney, travel_sites
from zoo.sites_page import sites_page, totals

ROOT = Path(__file__).parents[2]
FIGURES = ROOT / "benchmarks" / "results" / "zoo-branches.json"
PAGE = ROOT / "docs" / "zoo-branches.md"
ENVIRONMENT = {
    "versions": dict.fromkeys(("torch", "timm", "transformers"), "1.0"),
    "device": {"name": "a machine"},
}


class _Stacked(Architecture):
    """A stack in place of a library's architecture."""

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        return Stack().train()


def stacked() -> Architecture:
    def inputs(_own: Architecture, batch: int) -> dict[str, Any]:
        return {"x": torch.randn(batch, 3, 8, 8)}

    return _Stacked("timm", "stack", inputs)


def test_the_page_is_what_the_generator_makes(tmp_path: Path) -> None:
    made = tmp_path / "page.md"
    words = ["--sites", "repvgg", "--render", "--json", str(FIGURES), "--page", str(made)]
    main(words)
    assert made.read_bytes() == PAGE.read_bytes()


def test_the_figures_are_of_every_architecture() -> None:
    rows = json.loads(FIGURES.read_text(encoding="utf-8"))["rows"]
    assert [row["name"] for row in rows] == list(ARCHITECTURES)


def test_every_check_holds_for_a_stack() -> None:
    row = travel_sites(stacked(), form="repvgg", export=False, note=lambda _row: None)
    assert row["status"] == "passed", row["reason"]
    assert (row["norms"], row["sites"], row["planned"]) == (2, 2, 2)
    found = totals([row])
    assert found["passed"] == found["with_norms"] == 1 and found["planned"] == 2
    page = sites_page({"rows": [row], "totals": found, "environment": ENVIRONMENT})
    assert "| timm/stack | 2 | 2 | 2 | folded |" in page


def reached(step: str) -> SitesJourney:
    """A journey that has taken all steps before one."""
    journey = SitesJourney(stacked(), "repvgg", {})
    for name, take in STEPS:
        if name == step:
            break
        take(journey)
    return journey


def test_a_fold_that_forgets_a_branch_is_found() -> None:
    journey = reached("fold")
    with torch.no_grad():
        for name, parameter in journey.trained["modules"].named_parameters():
            if name.endswith("identity.norm.weight"):
                parameter.fill_(1.0)
    sites: list[Any] = [
        module
        for module in journey.trained["modules"].modules()
        if type(module).__name__ == "BranchedSite"
    ]
    for site in sites:
        site.spec = replace(site.spec, branches=("point",))
    with pytest.raises(CheckFailed, match="modules, folded: outputs differ"):
        journey.fold()


def test_a_start_that_is_another_function_is_found() -> None:
    journey = SitesJourney(stacked(), "repvgg(start=published)", {})
    for name, take in STEPS:
        if name == "branch":
            break
        take(journey)
    with pytest.raises(CheckFailed, match="modules: outputs differ"):
        journey.branch()


def test_a_failure_is_a_row_of_the_page() -> None:
    row = travel_sites(
        stacked(), form="repvgg(start=published)", export=False, note=lambda _r: None
    )
    assert row["status"] == "failed" and row["step"] == "branch"
    page = sites_page({"rows": [row], "totals": totals([row]), "environment": ENVIRONMENT})
    assert "failed: branch" in page and "outputs differ" in page
