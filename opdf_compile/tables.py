"""Tables as text, as HTML and as Markdown; their first row is the head."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape


def text_table(rows: list[tuple[str, ...]], right: tuple[int, ...] = ()) -> str:
    """Rows as aligned columns.

    Args:
        rows: Cells, all rows of one length.
        right: Columns that are aligned to the right.
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def html_table(rows: Iterable[tuple[str, ...]]) -> str:
    """Rows as a table element, their text escaped."""

    def line(tag: str, row: tuple[str, ...]) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row) + "</tr>"

    head, *body = rows
    return "<table>" + line("th", head) + "".join(line("td", row) for row in body) + "</table>"


def markdown_table(rows: Iterable[tuple[str, ...]]) -> str:
    """Rows as a table of Markdown; a bar in a cell does not end it."""
    head, *body = (tuple(cell.replace("|", "\\|") for cell in row) for row in rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *body))
