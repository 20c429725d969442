"""docs/ci.md names each key of report.json, and no other."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from full_report import FULL

from opdf_compile.artefacts import Drop
from opdf_compile.parity.numerics.numerics_result import Dropped, OutputError, Precision
from opdf_compile.parity.report.parity_result import OptimisedGraphs, StructurePart

PAGE = Path(__file__).parents[3] / "docs" / "ci.md"
VERDICTS = {
    *("pass", "fail", "inconclusive", "not_checked", "not_asked", "same", "differ"),
    *("not_compared", "opdf-report/1", "report.json"),
    *("t", "bootstrap"),
}
NUMERICS = replace(
    FULL.numerics,
    outputs=(OutputError("logits"),),
    precision=Precision("float16"),
    drops=(Dropped(Drop("logits", 0.01, 0.0, 64, 1.0)),),
)
REPORT = replace(
    FULL, structure=StructurePart("pass", 1, optimised=OptimisedGraphs()), numerics=NUMERICS
)


def documented() -> dict[str, set[str]]:
    """Words in code type of each row of the table, by the key that the row is about."""
    section = PAGE.read_text(encoding="utf-8").split("## report.json")[1]
    rows = re.findall(r"^\| (`.+?) \| (.+) \|$", section, re.MULTILINE)
    keys = {head: set(re.findall(r"`([^`]+)`", text)) for head, text in rows}
    return {
        name: words - VERDICTS
        for head, words in keys.items()
        for name in re.findall(r"`([^`]+)`", head)
    }


def test_the_page_names_the_keys_of_the_report() -> None:
    values, page = REPORT.to_json(), documented()
    assert set(page) == set(values)
    for part in ("structure", "numerics", "latency", "metric"):
        found = set(values[part])
        for inner in (values[part].get("optimised"), values[part].get("precision")):
            found |= set(inner or ())
        for row in values[part].get("outputs", ()):
            found |= set(row)
        for row in values[part].get("drops", ()):
            found |= set(row) | set(row["candidate"])
        assert page[part] == found, part
    assert page["environment"] >= set(values["environment"])
    (entry,) = values["files"].values()
    assert page["files"] == set(entry)


def test_each_shape_has_keys_of_the_whole() -> None:
    (shape,) = REPORT.to_json()["latency"]["shapes"]
    assert set(shape) - {"shape"} <= documented()["latency"]
