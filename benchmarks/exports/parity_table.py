"""The rows of parity.py for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.reporting import number, span, table

_SIDES = ("reference", "candidate")
_PARTS = ("structure", "numerics", "latency")
_MARKS = {"pass": "+", "fail": "x", "inconclusive": "?", "not_checked": "-"}


def result_table(rows: Sequence[Mapping[str, Any]]) -> Any:
    """The rows for people; two figures in a cell are the reference's and the candidate's."""
    columns = ("ratio", "90 %", "control", "ms", "MiB", "cold ms", "error", "allowed")
    words = ("model", "batch", "runtime", "S N L", "verdict")
    made = table("Candidate / reference", *words, *columns, left=len(words))
    for row in rows:
        what = (row["model"], str(row["batch"]), row["runtime"])
        if "latency" not in row:
            made.add_row(*what, "", "error", *("-",) * len(columns))
            continue
        found, numerics = row["latency"], row["numerics"]
        made.add_row(
            *what,
            " ".join(_MARKS[row[part]["verdict"]] for part in _PARTS),
            row["verdict"],
            number(found["ratio"], 4),
            span(found["ci_low"], found["ci_high"]),
            span(found["control"]["ci_low"], found["control"]["ci_high"]),
            _two(found["reference_ms"], found["candidate_ms"], 3),
            _two(*_both(found["memory"], 2**20), 0),
            _two(*_both(found["cold_start_ms"], 1), 0),
            *(_small(numerics[key]) for key in ("max_abs_error", "tolerance")),
        )
    return made


def _two(reference: float | None, candidate: float | None, digits: int) -> str:
    return f"{number(reference, digits)} {number(candidate, digits)}"


def _small(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


def _both(found: Mapping[str, float | None], unit: int) -> tuple[float | None, float | None]:
    """The reference's and the candidate's figure in a unit."""
    reference, candidate = (found[side] for side in _SIDES)
    return _in(reference, unit), _in(candidate, unit)


def _in(value: float | None, unit: int) -> float | None:
    return None if value is None else value / unit
