"""Tables of the pages that benchmarks write."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


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
