"""docs/zoo-branches.md, made from the JSON of a run with --sites and from nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench.markdown import table

from zoo.report import reasons

Row = Mapping[str, Any]

_HEAD = """# The zoo, with branches

The convolutional architectures of [the zoo](zoo.md) with branches beside every convolution that a
BatchNorm alone reads ([Branches](branches.md)). This page is generated from
`benchmarks/results/zoo-branches.json`; `python benchmarks/zoo --sites repvgg --json FILE --page
PAGE` runs it and writes both.

On each model: every convolution is a site or says why it is none; both forms, as modules and
inline, compute in eval mode what the student does; two steps move the branches; folded, the student
has the class, keys, shapes and flags that it had and computes what the branches did, within ten
times what its own rounding shows; the caller's model is untouched; of every second model the export
has the structure of the untouched student's file and the right numbers.
"""


def sites_line(row: Row, done: int, total: int) -> str:
    """One model in one line."""
    failed = f"failed: {row['step']}: {row['reason']}"
    counts = f"{row.get('planned', '-')} of {row.get('sites', '-')} sites"
    verdict = "passed" if row["status"] == "passed" else failed
    return f"[{done:>3}/{total}] {row['name']:<46} {counts:<18} {verdict}"


def totals(rows: Sequence[Row]) -> dict[str, Any]:
    """The counts over all models with a BatchNorm."""
    own = [row for row in rows if row.get("norms")]
    asked = [row for row in own if row["export_asked"] and row.get("planned")]
    return {
        "models": len(rows),
        "with_norms": len(own),
        "with_sites": sum(bool(row.get("sites")) for row in own),
        "with_branches": sum(bool(row.get("planned")) for row in own),
        "passed": sum(row["status"] == "passed" for row in own),
        "failed": [row["name"] for row in rows if row["status"] != "passed"],
        "sites": sum(row.get("sites", 0) for row in own),
        "planned": sum(row.get("planned", 0) for row in own),
        "inline_only": sum("inline_only" in row for row in own),
        "export_asked": len(asked),
        "export_passed": sum(row["status"] == "passed" and "export" in row for row in asked),
    }


def total_lines(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The counts as words and figures."""
    share = 100 * found["passed"] / max(found["with_norms"], 1)
    return [
        ("architectures", f"{found['models']}"),
        ("with a BatchNorm", f"{found['with_norms']}"),
        (
            "of these, every check held",
            f"{found['passed']} of {found['with_norms']} ({share:.1f} %)",
        ),
        ("with a site", f"{found['with_sites']}"),
        ("with branches", f"{found['with_branches']}"),
        ("sites", f"{found['sites']:,}"),
        ("sites with branches", f"{found['planned']:,}"),
        ("models that only the inline form takes", f"{found['inline_only']}"),
        (
            "exports with equal structure and right numbers",
            f"{found['export_passed']} of {found['export_asked']}",
        ),
    ]


def sites_page(figures: Mapping[str, Any]) -> str:
    """The page as Markdown.

    Args:
        figures: The JSON of a run.
    """
    return "\n".join(_lines(figures)) + "\n"


def _lines(figures: Mapping[str, Any]) -> Iterator[str]:
    rows = [row for row in figures["rows"] if row.get("norms") or row["status"] != "passed"]
    found = figures["environment"]
    yield _HEAD
    named = ", ".join(f"{n} {found['versions'][n]}" for n in ("torch", "timm", "transformers"))
    days = sorted({row["date"] for row in rows})
    yield f"Measured with {named} on {found['device']['name']}, {' to '.join(days)}.\n"
    yield from table(("in all", ""), total_lines(figures["totals"]))
    yield "## Failures"
    yield ""
    failed = [row for row in rows if row["status"] != "passed"]
    if failed:
        cells = ((row["name"], row["step"], row["reason"]) for row in failed)
        yield from table(("model", "step", "reason"), cells)
    else:
        yield "None.\n"
    yield "## Where the module form gives way to the inline form"
    yield ""
    given = [(row["name"], row["inline_only"]) for row in rows if "inline_only" in row]
    if given:
        yield from table(("model", "why"), given)
    else:
        yield "Nowhere.\n"
    yield "## Weights without branches, by reason"
    yield ""
    cells = ((reason, f"{n:,}", f"{m}") for reason, n, m in reasons(rows))
    yield from table(("a weight that", "weights", "models"), cells)
    yield "## Models"
    yield ""
    yield from table(
        ("model", "norms", "sites", "with branches", "verdict"), (_cells(row) for row in rows)
    )


def _cells(row: Row) -> tuple[str, ...]:
    counts = (f"{row.get(key, '-')}" for key in ("norms", "sites", "planned"))
    if row["status"] != "passed":
        return row["name"], *counts, f"failed: {row['step']}"
    exported = row["export_asked"] and row.get("planned")
    return row["name"], *counts, "folded, exported" if exported else "folded"
