"""How numbers and rows look in every command's tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table

from opdf_compile.cli.printable import printable


class _Table(Table):
    """A table whose cells may hold names from files."""

    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        """Adds a row; control characters in its texts are spelled out."""
        super().add_row(
            *(printable(cell) if isinstance(cell, str) else cell for cell in cells), **options
        )


def table(title: str, *columns: str, numbers: Sequence[str] = ()) -> Table:
    """An empty table; the columns named in `numbers` are aligned to the right."""
    made = _Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        right = column in numbers
        made.add_column(column, justify="right" if right else "left", no_wrap=right)
    return made


def dimensions(sizes: Sequence[int]) -> str:
    """A shape as people write it: 64x3x7x7."""
    return "x".join(map(str, sizes))


def count(number: float) -> str:
    """A count with its magnitude, to three digits: 11.7 M."""
    for unit, factor in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= factor:
            return f"{number / factor:.3g} {unit}"
    return f"{number:.0f}"


def size_of_file(number: int) -> str:
    """Bytes as people read them: 44.8 MB."""
    return f"{count(number)}B" if number >= 1000 else f"{number} B"
