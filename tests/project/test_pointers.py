"""What README, CONTRIBUTING and docs/ say of the repository's own files is true."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").glob("**/*.md"))]
FENCED = re.compile(r"^(`{3,}).*?^\1\s*$", re.MULTILINE | re.DOTALL)
OWN = re.compile(r"`((?:opdf_compile|tests|benchmarks|examples|docs)/[\w./]*)`")
PLACED = re.compile(r"`([A-Za-z_][\w.]*)` in\s+`(opdf_compile/[\w/]+\.py)`")


def wrong(text: str) -> Iterator[str]:
    """Paths of the repository that do not exist, and names that a file does not define."""
    prose = FENCED.sub("", text)
    yield from (path for path in OWN.findall(prose) if not (ROOT / path).exists())
    for name, path in PLACED.findall(prose):
        if (ROOT / path).exists() and name not in defined(ROOT / path):
            yield f"{name} in {path}"


def defined(path: Path) -> set[str]:
    """Functions and classes of a file, methods after their class."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    top = [node for node in ast.parse(path.read_text("utf-8")).body if isinstance(node, kinds)]
    inner = {
        f"{owner.name}.{node.name}"
        for owner in top
        for node in owner.body
        if isinstance(node, ast.FunctionDef)
    }
    return {node.name for node in top} | inner


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_names_files_and_what_is_in_them(page: Path) -> None:
    assert [*wrong(page.read_text("utf-8"))] == []


def test_the_way_in_is_looked_at() -> None:
    """A checker that finds nothing to check would pass on everything."""
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    assert len(PLACED.findall(text)) > 8
    assert len(OWN.findall(text)) > 15


def test_a_stale_path_and_a_stale_name_are_found() -> None:
    said = "`opdf_compile/no.py`, `gone` in `opdf_compile/errors.py`, `Plan.no` in\n"
    said += "`opdf_compile/planning/plans.py`, `InputError` in `opdf_compile/errors.py`"
    assert [*wrong(said)] == [
        "opdf_compile/no.py",
        "gone in opdf_compile/errors.py",
        "Plan.no in opdf_compile/planning/plans.py",
    ]
