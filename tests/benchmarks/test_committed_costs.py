"""The page's table of costs is that of the committed run."""

from __future__ import annotations

import json
from pathlib import Path

from bench.markdown import filled
from methods_step import METHODS, page_table

ROOT = Path(__file__).parents[2]


def test_the_page_has_the_costs_of_the_committed_run() -> None:
    run, wide = (
        json.loads((ROOT / f"benchmarks/results/methods_step{which}.json").read_text())
        for which in ("", "-wide")
    )
    rows = [*run["rows"], *wide["rows"]]
    page = (ROOT / "docs/performance.md").read_text()
    table = page_table(rows, run["refused"])
    assert table in page
    assert filled(page, {"methods": table}) == page
    timed = {row["form"] for row in rows if row["model"] != "blocks"}
    assert timed == set(METHODS), "every method has a step on some student"
