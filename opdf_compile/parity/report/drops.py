"""What quantisation costs, as a table: float32 to int8, the candidate beside the reference."""

from __future__ import annotations

from opdf_compile.artefacts import Drop
from opdf_compile.parity.numerics.numerics_result import NumericsResult
from opdf_compile.parity.report.findings import Cells

_HEAD = ("after quantisation", "samples", "candidate", "reference")


def drop_rows(numerics: NumericsResult) -> list[Cells]:
    """A head and rows for each output: its error, and the rows with another largest score.

    Empty where the candidate is not quantised.
    """
    made: list[Cells] = []
    for dropped in numerics.drops:
        ours, theirs = dropped.candidate, dropped.reference
        samples = f"{ours.rows} rows of the check data"
        sides = (ours, theirs)
        name = ours.output
        made.append((f"{name}: error, relative RMS", samples, *map(_error, sides)))
        if ours.changed is not None:
            title = f"{name}: rows with another largest score"
            made.append((title, samples, *map(_changed, sides)))
    return [_HEAD, *made] if made else []


def _error(drop: Drop | None) -> str:
    return "-" if drop is None else f"{100 * drop.relative_rms:.2g} %"


def _changed(drop: Drop | None) -> str:
    return "-" if drop is None or drop.changed is None else f"{100 * drop.changed:.2g} %"
