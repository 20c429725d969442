"""The committed development runs, the page and the protocol say the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bench.markdown import filled
from quality.second import plan
from quality.second.page import write
from quality.second.store import Store
from quality.second.tables import PRIMARY
from quality.second.tasks import DEVELOPMENT

ROOT = Path(__file__).resolve().parents[4]
RESULTS = ROOT / "benchmarks/results"
RUNS = RESULTS / "second-development.jsonl"
NAME = "second-development"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("committed")


@pytest.fixture(scope="module", name="tables")
def made(folder: Path) -> dict[str, str]:
    """Of copies: a store drops a damaged last line from its file."""
    copies = [folder / RUNS.name, folder / "second-confirmation.jsonl"]
    for copy in copies:
        copy.write_bytes((RESULTS / copy.name).read_bytes())
    return write(*copies, path=folder / "second.json")


def test_the_page_shows_the_committed_runs(tables: dict[str, str]) -> None:
    shown = (ROOT / "docs/evidence.md").read_text()
    assert NAME in tables and filled(shown, tables) == shown
    assert filled(shown, {NAME: "| other |"}) != shown


def test_the_committed_rows_are_those_of_the_committed_runs(
    tables: dict[str, str], folder: Path
) -> None:
    made = json.loads((folder / "second.json").read_text())
    assert "second-primary" in tables and made["rows"]
    assert json.loads((RESULTS / "second.json").read_text()) == made


def test_the_protocol_shows_the_same_rows(tables: dict[str, str]) -> None:
    protocol = (ROOT / "benchmarks/quality/second/PROTOCOL.md").read_text()
    assert tables[NAME] in protocol
    assert f"| primary method | `{PRIMARY}`" in protocol


def test_development_read_no_confirmation_task() -> None:
    keys = [key for key, _found in Store(RUNS).items()]
    assert {key["task"] for key in keys} <= set(DEVELOPMENT)
    assert {key["student"] for key in keys} <= {stage.student for stage in plan.DEVELOPMENT}
