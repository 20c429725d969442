"""A claim's verdict, and the table that is made of the rows."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from claims.claim import Claim, Finding, paired
from claims.command import committed
from claims.page import write_page
from claims.registry import NAMES, system

CLAIM = Claim(
    system="a system",
    source="arXiv 0000.00000",
    says="It is better by more than 2.",
    task="a task",
    method="it",
    baseline="plain",
    equal="steps",
    unit="points",
    above=2.0,
)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (2.1, 4.0, "confirmed"),
        (0.5, 1.9, "refuted"),
        (1.9, 2.1, "open"),
        (2.0, 3.0, "open"),
        (-math.inf, math.inf, "open"),
        (math.nan, 1.0, "open"),
    ],
)
def test_the_whole_interval_decides(low: float, high: float, verdict: str) -> None:
    """Above what is claimed, below it, or neither."""
    assert Finding(CLAIM, 2.0, low, high, 8).verdict == verdict


def test_a_paired_finding_is_student_s_interval() -> None:
    """Four differences of 1, 2, 3, 6: mean 3, standard error 1.0801, t(0.975, 3) = 3.1824."""
    found = paired(CLAIM, [1.0, 2.0, 3.0, 6.0], [0.0, 0.0, 0.0, 0.0])

    assert found.figure == 3.0
    assert found.ci_low == pytest.approx(3 - 3.182446 * 1.0801234, abs=1e-5)
    assert found.ci_high == pytest.approx(3 + 3.182446 * 1.0801234, abs=1e-5)
    assert found.verdict == "open"


def test_a_row_is_json_without_infinities() -> None:
    """An end that is not known is null, which every reader of JSON takes."""
    row = Finding(CLAIM, 2.0, -math.inf, 3.0, 8).row()

    told = json.loads(json.dumps(row, allow_nan=False))

    assert told["ci_low"] is None
    assert told["ci_high"] == 3.0
    assert told["verdict"] == "open"


def test_the_page_gets_its_rows(tmp_path: Path) -> None:
    """What stands around the place stays."""
    page = tmp_path / "claims.md"
    page.write_text("before\n<!-- table: claims -->\nold\n<!-- end -->\nafter\n", encoding="utf-8")

    write_page(page, [Finding(CLAIM, 2.5, 2.25, 3.0, 8, "A remark.").row()])

    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| 2.5 points. A remark. | [2.25, 3] | 8 | confirmed |" in text


@pytest.mark.parametrize("name", NAMES)
def test_each_system_has_committed_rows(name: str) -> None:
    """The page speaks of every system that `make claims` runs."""
    assert system(name).name == name
    named = {"".join(filter(str.isalnum, row["system"].lower())) for row in committed(name)}
    assert named == {name}


def test_the_page_holds_what_is_committed(tmp_path: Path) -> None:
    """`python benchmarks/claims --page` would not change it."""
    page = Path(__file__).parents[3] / "docs" / "claims.md"
    text = page.read_text(encoding="utf-8")
    copy = tmp_path / "claims.md"
    copy.write_text(text, encoding="utf-8")

    write_page(copy, [row for name in NAMES for row in committed(name)])

    assert copy.read_text(encoding="utf-8") == text
