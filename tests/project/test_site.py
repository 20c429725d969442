"""The pages of docs/ as a site: the nav has each, links lead somewhere, the API is whole.

`make site` finds more and needs mkdocs; what is here needs the files alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import opdf_compile
from opdf_compile import distill
from opdf_compile.cli.app import app

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("**/*.md"))
NAV: list[dict[str, Any]] = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"]
PARTS = {name: below for part in NAV for name, below in part.items() if isinstance(below, list)}

FENCED = re.compile(r"^(`{3,}).*?^\1\s*$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`]*`")
HEADING = re.compile(r"^#+ +(.+?)\s*$", re.MULTILINE)
LINK = re.compile(r"\]\(([^()\s]+)\)")
NAME = re.compile(r"^::: ([\w.]+)\.(\w+)$", re.MULTILINE)
ROW = re.compile(r"^\| `([\w-]+)` \|", re.MULTILINE)


def files(nav: Any) -> Iterator[str]:
    """The pages that a nav names, from top to bottom."""
    if isinstance(nav, str):
        yield nav
    else:
        for below in nav.values() if isinstance(nav, dict) else nav:
            yield from files(below)


def anchors(text: str) -> set[str]:
    """What a link to a heading of this page may say after its #."""
    headings = HEADING.findall(FENCED.sub("", text))
    return {re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", h).strip().lower()) for h in headings}


def links(text: str) -> list[str]:
    return LINK.findall(CODE.sub("", FENCED.sub("", text)))


def dead_links(page: Path, text: str) -> list[str]:
    """The links of a page that lead to no file, or to no heading of it."""
    dead = []
    for link in links(text):
        path, _, anchor = link.partition("#")
        if path.startswith(("http://", "https://")):
            continue
        target = page.parent / path if path else page
        there = text if target == page else ""
        if target.suffix == ".md" and target.exists() and target != page:
            there = target.read_text("utf-8")
        if not target.exists() or (anchor and anchor not in anchors(there)):
            dead.append(link)
    return dead


def section(text: str, heading: str) -> str:
    """What stands under a heading of the second level."""
    (found,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return str(found)


def test_the_nav_names_each_page_once() -> None:
    assert sorted(files(NAV)) == [str(page.relative_to(DOCS)) for page in PAGES]


def test_the_index_leads_to_each_page_of_its_parts() -> None:
    index = (DOCS / "index.md").read_text("utf-8")
    assert list(PARTS) == ["Learn", "Do", "Look up", "Understand"]
    for part, below in PARTS.items():
        assert set(files(below)) <= set(links(section(index, part))), part


@pytest.mark.parametrize(
    "page", [*PAGES, *sorted(ROOT.glob("*.md"))], ids=lambda page: str(page.relative_to(ROOT))
)
def test_no_link_is_dead(page: Path) -> None:
    assert dead_links(page, page.read_text("utf-8")) == []


@pytest.mark.parametrize(
    ("text", "dead"),
    [
        ("# A\n[x](gone.md)", ["gone.md"]),
        ("# A\n![x](gone.png)", ["gone.png"]),
        ("# A\n[x](index.md#nowhere) and [y](index.md#learn)", ["index.md#nowhere"]),
        ("# A `b.c` D\n[x](#a-bc-d) [y](#a)", ["#a"]),
        ("# A\n```text\n# B\n[x](gone.md)\n```\n[y](#b) `[z](gone.md)`", ["#b"]),
        ("# A\n[x](https://example.org/gone) [y](../README.md#set-up)", []),
    ],
)
def test_dead_links_are_found(text: str, dead: list[str]) -> None:
    assert dead_links(DOCS / "guide.md", text) == dead


def test_the_check_of_the_nav_can_fail() -> None:
    assert list(files([{"Start": "a.md"}, {"Part": ["b.md", {"Title": "c.md"}]}])) == [
        "a.md",
        "b.md",
        "c.md",
    ]
    assert links(section("## Do\n[x](a.md)\n## Learn\n[y](b.md)\n", "Do")) == ["a.md"]


def test_the_api_page_has_each_public_name_once() -> None:
    named = NAME.findall((DOCS / "api.md").read_text("utf-8"))
    assert sorted(named) == [("opdf_compile", name) for name in sorted(opdf_compile.__all__)]


def test_the_page_of_losses_names_what_exists() -> None:
    named = NAME.findall((DOCS / "losses.md").read_text("utf-8"))
    assert named and {package for package, _ in named} == {"opdf_compile.distill"}
    assert {name for _, name in named} <= set(vars(distill)["__all__"])


def test_the_page_of_commands_lists_each_command() -> None:
    page = (DOCS / "cli.md").read_text("utf-8")
    assert ROW.findall(page) == [command.name for command in app.registered_commands]
    assert "<!-- the help of every command -->" in page
