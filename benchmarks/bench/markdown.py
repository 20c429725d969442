"""Tables of the pages that benchmarks write."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

_PLACE = r"<!-- table: ([a-z-]+) -->\n.*?<!-- end -->"


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """The lines of a table and an empty one behind it."""
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(_cell(cell) for cell in row) + " |"
    yield ""


def _cell(text: str) -> str:
    """Text that keeps a table whole."""
    line = " ".join(str(text).split())
    # `[a][b]` would be read as a link.
    return line.replace("|", "\\|").replace("<", "&lt;").replace("][", "]\\[")


def filled(page: str, tables: Mapping[str, str]) -> str:
    """The page with every table that has a place; a place without a table is left as it is."""

    def put(found: re.Match[str]) -> str:
        name = found.group(1)
        if name not in tables:
            return found.group(0)
        return f"<!-- table: {name} -->\n\n{tables[name]}\n\n<!-- end -->"

    return re.sub(_PLACE, put, page, flags=re.DOTALL)
