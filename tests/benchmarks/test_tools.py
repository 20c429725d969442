"""The table of other tools: its rows, a tool that fails, one that computes something else."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from exports import neighbours
from exports.tools_page import BEGIN, END, tool_lines, write_page


def broken(trial: neighbours.Trial) -> neighbours.Outcome:
    raise RuntimeError("No Previous Version of Gelu exists")


def wrong(trial: neighbours.Trial) -> neighbours.Outcome:
    return neighbours.Outcome(
        [2 * value for value in neighbours.outputs_of(trial.file, trial.feeds)]
    )


@pytest.fixture(scope="module")
def value(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("tools") / "tools.json"
    with pytest.MonkeyPatch.context() as patch:
        for name, run in (("converted", broken), ("slimmed", wrong)):
            tool = neighbours.Tool(name, "onnx", run)
            patch.setitem(neighbours.TOOLS, name, tool)  # type: ignore[arg-type]
        importlib.import_module("tools").main(["--models", "tiny", "--json", str(path)])
    return dict(json.loads(path.read_text()))


@pytest.mark.slow
def test_every_tool_has_a_row_that_says_what_it_did(value: dict[str, Any]) -> None:
    assert value["schema"] == "opdf-tools/1"
    rows = {row["tool"]: row for row in value["rows"]}
    for name in ("dynamic", "static", "half", "merged", "opset 17"):
        assert rows[name]["result"] == "taken", rows[name]
    assert rows["dynamic"]["int8"] == rows["dynamic"]["linears"] == 2
    assert 0 < rows["dynamic"]["difference"] < 0.1 and rows["merged"]["difference"] is None


@pytest.mark.slow
def test_a_refusal_and_other_numbers_are_told_apart(value: dict[str, Any]) -> None:
    rows = {row["tool"]: row for row in value["rows"]}
    assert rows["converted"]["result"] == "refused" and "Gelu" in rows["converted"]["reason"]
    assert rows["slimmed"]["result"] == "other numbers"
    assert rows["slimmed"]["difference"] == pytest.approx(1)
    # Without a Python that has it, there is nothing to say.
    assert "optimum" not in rows


@pytest.mark.slow
def test_the_page_holds_the_table(value: dict[str, Any], tmp_path: Path) -> None:
    named = {**value, "rows": [{**row, "model": "lstm"} for row in value["rows"]]}
    text = "\n".join(tool_lines(named))
    assert "Gelu is newer" in text and "| onnxslim | other numbers |" in text
    assert "2 of 2 (torch: " in text
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nthe table of yesterday\n{END}\nafter\n")
    write_page(page)
    assert "yesterday" not in page.read_text() and page.read_text().endswith("after\n")
    page.write_text("no place")
    with pytest.raises(SystemExit, match="has no place for the table"):
        write_page(page)


def test_the_page_in_the_docs_is_of_these_results(tmp_path: Path) -> None:
    docs = Path(__file__).parents[2] / "docs" / "onnx.md"
    copy = tmp_path / "onnx.md"
    copy.write_text(docs.read_text(encoding="utf-8"), encoding="utf-8")
    write_page(copy)
    assert copy.read_text(encoding="utf-8") == docs.read_text(encoding="utf-8")
