"""The outcomes for people: a line a class, and counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.reporting import table

Row = Mapping[str, Any]
# What a row that a process left unfinished has none of.
_FIELDS = ("name", "verdict", "stepped", "checks")


def completed(row: Row) -> dict[str, Any]:
    """A row of the runner, with a verdict where its process was killed or died."""
    if row["status"] == "passed":
        return {key: row[key] for key in _FIELDS}
    died = {"kind": "raw", "text": row["reason"]}
    return {
        "name": row["name"],
        "verdict": "raw error",
        "stepped": False,
        "checks": {"process": died},
    }


def line(row: Row, done: int, total: int) -> str:
    """One class in one line."""
    return (
        f"[{done:>3}/{total}] {row['name']:<46} {row['verdict']:<14} {reason(row)[:120]}".rstrip()
    )


def reason(row: Row) -> str:
    """The outcome that the verdict follows from, as `check: text`."""
    kinds = {"silently wrong": "wrong", "raw error": "raw", "refused": "refused"}
    wanted = kinds.get(row["verdict"], "raw")
    for name, outcome in row["checks"].items():
        if outcome["kind"] == wanted:
            return f"{name}: {outcome['text']}"
    return ""


def totals(rows: Sequence[Row]) -> dict[str, Any]:
    """The counts over all classes, and by package."""
    return {
        **_counts(rows),
        "packages": {name: _counts(of) for name, of in by_package(rows).items()},
    }


def by_package(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each package, in their order."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["name"].partition("/")[0], []).append(row)
    return found


def _counts(rows: Sequence[Row]) -> dict[str, int]:
    able = [row for row in rows if row["verdict"] != "plain fails"]
    verdicts = ("works", "refused", "raw error", "silently wrong", "plain fails")
    return {
        "classes": len(rows),
        "step a plain student": len(able),
        "step an over-parameterised one": sum(row["stepped"] for row in able),
        **{verdict: sum(row["verdict"] == verdict for row in rows) for verdict in verdicts},
    }


def totals_table(found: Mapping[str, Any]) -> Any:
    """The counts."""
    made = table("In all", "", "", left=1)
    for name, count in found.items():
        if name != "packages":
            made.add_row(name, str(count))
    return made
