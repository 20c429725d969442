"""docs/zoo.md is what the generator makes of the committed figures, and these are complete."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from zoo import command
from zoo.architectures import ARCHITECTURES
from zoo.command import SCHEMA, main
from zoo.page import page
from zoo.report import line, plain_reason, reason_table, result_table, totals, totals_table

ROOT = Path(__file__).parents[2]
FIGURES = ROOT / "benchmarks" / "results" / "zoo.json"
PAGE = ROOT / "docs" / "zoo.md"


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    value: dict[str, Any] = json.loads(FIGURES.read_text(encoding="utf-8"))
    return value


def test_the_page_is_what_the_generator_makes(figures: dict[str, Any], tmp_path: Path):
    assert PAGE.read_text(encoding="utf-8") == page(figures)
    made = tmp_path / "page.md"
    main(["--render", "--json", str(FIGURES), "--page", str(made)])
    assert made.read_bytes() == PAGE.read_bytes()


@pytest.mark.parametrize("key", ["status", "matches", "rung", "processor_seconds"])
def test_the_page_follows_the_figures(figures: dict[str, Any], key: str):
    other = copy.deepcopy(figures)
    other["rows"][0][key] = {"status": "failed", "matches": 12345, "rung": "x"}.get(key, 99.5)
    assert page(other) != page(figures)


def test_the_figures_are_of_every_architecture(figures: dict[str, Any]):
    assert figures["schema"] == SCHEMA
    assert [row["name"] for row in figures["rows"]] == list(ARCHITECTURES)
    assert figures["totals"] == totals(figures["rows"])
    for row in figures["rows"]:
        assert row["status"] in ("passed", "failed")
        assert (row["reason"] is None) == (row["status"] == "passed")


ROW: dict[str, Any] = {
    "name": "timm/a",
    "library": "timm",
    "status": "passed",
    "reason": None,
    "step": None,
    "reached": "fold",
    "export_asked": False,
    "seconds": {"build": 1.0, "trace": 2.0},
    "processor_seconds": 2.5,
    "peak_mib": 400.0,
    "model": "A",
    "parameters": 100,
    "rung": "dynamic",
    "notes": [],
    "batch": "free",
    "matches": 3,
    "refusals": [{"key": "w", "reason": "is tied to an embedding of 99 rows"}],
    "weights": 100,
    "matched": 80,
    "tied": 20,
    "silent": [],
    "scale": 1.5,
}
FAILED = {
    **{key: ROW[key] for key in ("library", "seconds", "processor_seconds", "peak_mib")},
    "name": "timm/b",
    "status": "failed",
    "step": "build",
    "reached": None,
    "reason": "ImportError: no | such <thing>",
    "export_asked": True,
}


def test_totals_count_failures_and_shares():
    found = totals([ROW, FAILED, {**ROW, "name": "timm/c", "silent": ["x"], "matched": 100}])
    assert found["models"] == 3 and found["folded"] == 2 and found["failed"] == ["timm/b"]
    assert found["export_asked"] == 1 and found["export_passed"] == 0
    assert found["matched_share"] == 0.9 and found["matched_share_of_untied"] == 180 / 160
    assert found["silent"] == 1 and found["rungs"] == {"dynamic": 2}


def test_older_rows_are_told_apart_and_not_counted_as_looked_at():
    new = {**ROW, "name": "timm/n", "date": "2026-01-02", "attributes": 9, "export_asked": True}
    sizes = {**new, "export": {"sizes": {"batch": {"1": 0.1}}}}
    lost = {**FAILED, "date": "2026-01-03"}
    found = totals([ROW, sizes, {**new, "export": {"sizes": {}}}, lost])
    assert (found["attributes_same"], found["attributes_looked_at"]) == (2, 3)
    assert (found["sizes_run"], found["sizes_looked_at"]) == (1, 3)

    def said(*rows: dict[str, Any]) -> str:
        return page(figures_of(*rows))

    assert "2 of 3 rows are of 2026-01-02 to 2026-01-03. The others" in said(ROW, sizes, lost)
    assert "1 of 1 rows are of 2026-01-02.\n" in said(sizes)
    assert "No row is of a run" in said(ROW) and "| 400 | - |" in said(ROW)
    assert "| 400 | 2026-01-02 |" in said(sizes)


def test_a_model_that_failed_in_export_reached_fold():
    row = {**ROW, "status": "failed", "step": "export", "export_asked": True, "reason": "no"}
    assert totals([row])["folded"] == 1 and totals([row])["export_passed"] == 0
    before = {**row, "reached": "train", "step": "fold"}
    assert totals([before])["folded"] == 0


def figures_of(*rows: dict[str, Any]) -> dict[str, Any]:
    return {
        "rows": list(rows),
        "totals": totals(rows),
        "environment": {
            "versions": {"torch": "1", "timm": "2", "transformers": "3"},
            "device": {"name": "cpu"},
            "load_average": 1.0,
            "options": {"cores": 2, "jobs": 1},
        },
    }


def test_a_failure_is_shown_by_name_and_reason():
    text = page(figures_of(ROW, FAILED))
    assert "| timm/b | build | ImportError: no \\| such &lt;thing> |" in text
    assert "| is tied to an embedding of N rows | 1 | 1 |" in text
    assert "failed: build" in line(FAILED, 1, 2) and "no | such" in line(FAILED, 1, 2)
    for made in (result_table, reason_table):
        assert made([ROW, FAILED]).row_count >= 1
    assert totals_table(totals([ROW, FAILED])).row_count > 10


@pytest.mark.parametrize("keep", [True, False])
def test_rows_of_an_earlier_run_stay_until_they_are_measured_again(
    keep: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first, second = list(ARCHITECTURES)[:2]
    file = tmp_path / "zoo.json"
    old = [{**ROW, "name": first}, {**ROW, "name": second}]
    file.write_text(json.dumps({"schema": SCHEMA, "rows": old}))
    new = {**ROW, "name": second, "date": "2026-01-02", "matches": 4}
    monkeypatch.setattr(command, "run", lambda names, *_, **__: iter([new]))
    main(["--only", second, "--json", str(file), *(["--keep"] if keep else [])])
    found = json.loads(file.read_text())
    assert found["rows"] == ([old[0], new] if keep else [new])
    assert found["totals"]["matches"] == (7 if keep else 4)


def test_sizes_in_reasons_are_one_reason():
    assert plain_reason("of 99 rows (include= takes it all the same)") == "of N rows"
    assert plain_reason("reaches aten.conv2d.default") == "reaches aten.conv2d.default"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--only", "timm/no_such"], "names no architecture"),
        (["--shard", "3/2"], "--shard is '3/2'"),
        (["--jobs", "0"], "--jobs is 0"),
        (["--json", "no/such/folder.json"], "folder does not exist"),
        (["--keep"], "--keep needs the file that --json names"),
        (["--resume"], "--resume needs the file that --json names"),
        (["--render", "--page", "x.md"], "--render needs --json"),
        (["--render", "--json", "no.json", "--page", "x.md"], "no.json cannot be read"),
    ],
)
def test_bad_words_are_one_sentence(words: list[str], sentence: str, capsys: Any):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2 and sentence in capsys.readouterr().err
