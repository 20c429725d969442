"""What is aligned to what, as a table."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from opdf_compile.tables import html_table, text_table

_HEAD = ("student", "teacher", "cores compared", "loss at start", "left out")


@dataclass(frozen=True)
class AlignmentRow:
    """One pair of weights.

    Attributes:
        key: The student's weight.
        teacher: The teacher's weight.
        compared: Places of the cores that are compared.
        note: What is left out, and why.
        start: L_Aux of the weight when it was aligned; None where its cores are not held here.
    """

    key: str
    teacher: str
    compared: tuple[int, ...]
    note: str
    start: float | None

    def cells(self) -> tuple[str, ...]:
        """The row of the table."""
        places = ", ".join(map(str, self.compared)) or "none"
        start = "" if self.start is None else f"{self.start:.3g}"
        return self.key, self.teacher, places, start, self.note


@dataclass(frozen=True)
class AlignmentReport:
    """All pairs of an alignment; prints as a table."""

    rows: tuple[AlignmentRow, ...]

    def __str__(self) -> str:
        table = text_table([_HEAD, *(row.cells() for row in self.rows)], right=(3,))
        return f"{table}\n{self.totals()}"

    def totals(self) -> str:
        """One line: how many weights are aligned, wholly or in part."""
        aligned = [row for row in self.rows if row.compared]
        whole = sum(not row.note for row in aligned)
        return (
            f"{len(aligned)} of {len(self.rows)} weights are aligned, {whole} of them in every "
            "auxiliary core"
        )

    def _repr_html_(self) -> str:
        table = html_table([_HEAD, *(row.cells() for row in self.rows)])
        return f"{table}<p>{escape(self.totals())}</p>"
