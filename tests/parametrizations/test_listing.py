"""The list of all parametrizations: complete, in words, and the docs' tables say the same."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from quick import quick
from torch import nn

import opdf_compile as opdf
from opdf_compile.cli import main
from opdf_compile.parametrizations import branch_forms, registered_names, registry
from opdf_compile.parametrizations.mpo import Mpo

PAGE = (Path(__file__).parents[2] / "docs" / "method.md").read_text(encoding="utf-8")
ROWS = {row.name: row for row in opdf.parametrizations()}
FORMS = {"weight": {"Overparam", "inline"}, "site": {"inline", "module"}}


def test_all_are_listed_weights_first() -> None:
    assert list(ROWS) == [*registered_names(), *branch_forms()]
    kinds = [row.kind for row in ROWS.values()]
    assert kinds == ["weight"] * len(registered_names()) + ["site"] * len(branch_forms())


@pytest.mark.parametrize("name", ROWS)
def test_each_says_what_it_is_adds_and_comes_from(name: str) -> None:
    row = ROWS[name]
    assert row.summary and row.adds, "give the class a summary, and adds"
    assert re.search(r"arXiv \d{4}\.\d{4,5}$", row.source), "give the class its source"
    assert set(row.forms) <= FORMS[row.kind] and row.forms
    assert all(option.doc for option in row.options.values())


@pytest.mark.parametrize("name", ROWS)
def test_the_page_on_the_method_says_the_same(name: str) -> None:
    row = ROWS[name]
    cells = {line.partition("|")[2].split(" | ")[0].strip(" `"): line for line in rows_of(PAGE)}
    assert name in cells, "give it a row in docs/method.md"
    plain = cells[name].replace("`", "")
    assert f"| {row.summary} |" in plain and f"| {row.adds} |" in plain
    assert row.source.split()[-1] in PAGE


def rows_of(page: str) -> Iterator[str]:
    return (line for line in page.splitlines() if line.startswith("| `"))


def test_it_prints_as_a_table_in_text_and_html() -> None:
    listing = opdf.parametrizations()
    text, html = str(listing), listing._repr_html_()
    head = text.splitlines()[0].split("  ")
    assert [cell.strip() for cell in head if cell] == list(listing.head)
    assert "wide(expansion=4): inner width over the larger side, 1 to 16" in text
    assert "spectral(rank=..): " in text and "spectral(residual=trained|frozen|none): " in text
    assert text.count("(seed=0)") == 1, "what all sites have comes once"
    for row in listing:
        assert row.name in text and f"<td>{row.name}</td>" in html
    assert "of the thin factors over the others&#x27;" in html


def test_those_of_ones_own_are_listed_whatever_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stranger:
        name = "strange"

        def summary(self) -> str:
            return "a member of its own"

    monkeypatch.setattr(registry, "_REGISTERED", {})
    opdf.register(Mpo(name="chain"))
    opdf.register(Stranger())
    chain, strange = [row for row in opdf.parametrizations() if row.kind == "weight"]
    assert (chain.name, chain.source) == ("chain", "OPDF, arXiv 2411.06448")
    assert strange.cells() == ("strange", "weight", "Overparam, inline", "", "", "")


def test_the_command_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["parametrizations", "--json", "-"]) == 0
    written = json.loads(capsys.readouterr().out)
    assert written == json.loads(json.dumps(opdf.parametrizations().to_json()))
    found = {row["name"]: row for row in written["parametrizations"]}
    assert found["wide"]["options"]["expansion"] == {
        "kind": "int",
        "default": 4,
        "doc": "inner width over the larger side, 1 to 16",
    }
    assert found["repvgg"]["options"]["start"]["kind"] == ["exact", "published"]
    assert main(["parametrizations"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ROWS)
    assert "wide(expansion=4)" in printed


def added(name: str, o: int, i: int, g: int, k: int, n: int) -> Any:
    """What the words of a branch form say, of a k x k kernel."""
    m = k * k
    return {
        "repvgg": o * i // g + 4 * o,
        "acnet": 2 * k * o * i // g + 4 * o,
        "mobileone": ((n - 1) * m + 1) * o * i // g + 2 * (n + 1) * o,
        "dbb": (m + 2) * o * i // g + i * i // g + 8 * o + 2 * i,
    }[name]


@pytest.mark.parametrize("name", ["repvgg", "acnet", "mobileone", "dbb"])
@pytest.mark.parametrize("groups", quick([1, 2], {2}))
def test_what_branches_are_said_to_add_is_what_training_holds(name: str, groups: int) -> None:
    conv = nn.Conv2d(6, 6, 3, padding=1, groups=groups, bias=False)
    traced = opdf.trace(nn.Sequential(conv, nn.BatchNorm2d(6)), (torch.randn(2, 6, 5, 5),))
    training = opdf.expand(traced, opdf.plan(traced, parametrization=name))
    own = prod(conv.weight.shape) + 2 * 6
    trained = sum(p.numel() for p in training.parameters())
    assert trained - own == added(name, 6, 6, groups, 3, 4)


def test_the_package_is_called_by_its_own_name() -> None:
    """Whether or not it was imported before: here in a process of its own."""
    code = (
        "import opdf_compile as opdf; first = len(opdf.parametrizations().rows); "
        "from opdf_compile.parametrizations import registered_names; "
        "assert first == len(opdf.parametrizations().rows) > len(registered_names())"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
