"""docs/zoo.md, made from the JSON of a run and from nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench.markdown import table

from zoo.report import folded, reasons, share, total_lines, verdict

_HEAD = """# The zoo

Real architectures of timm and transformers through the whole pipeline: small configurations, random
weights, one thread of a CPU, a process each. This page is generated from
`benchmarks/results/zoo.json`; `make zoo` runs the zoo and writes both.

What is checked on each model:
"""

_CHECKS = (
    (
        "trace",
        "the strictest rung that holds is named; a free batch axis is run at another size; no "
        "attribute, buffer or cache of any submodule is changed, added or lost",
    ),
    (
        "match",
        "each weight of a Linear or Conv layer, counted apart from the matcher, is a match or a "
        "refusal",
    ),
    (
        "expand",
        "each composed weight within 1e-6 of its norm; outputs equal the student's; folded at "
        "once, the student is the one that came",
    ),
    ("train", "a finite loss; cores move wherever the student's own step has a gradient"),
    (
        "fold",
        "class, keys, shapes, dtypes, ties and flags; what was not planned bit for bit; outputs "
        "equal those of the trained form; the caller's model untouched",
    ),
    (
        "export",
        "structure and numbers against the untouched student's file (every second model of a "
        "library); each free axis of the file at two other sizes, 1 among them, in onnxruntime "
        "against the module; no attribute changed by it",
    ),
)

_NOTES = """Outputs are equal if they differ by no more than ten times what the student itself shows
when its weights and inputs move at random by as much as they were rounded.

A share is of unique parameters in Linear and Conv weights. A vocabulary-sized weight that an
embedding shares is refused by default (`include=` takes it); it counts as not matched. Stacked
experts, recurrent kernels and tables are no Linear or Conv weights: they are among the refusals by
reason, and not in the share. Where the rung is "module", no graph holds the model and the chain
trains in the optimizer.
"""


def page(figures: Mapping[str, Any]) -> str:
    """The page as Markdown.

    Args:
        figures: The JSON of a run.
    """
    return "\n".join(_lines(figures)) + "\n"


def _lines(figures: Mapping[str, Any]) -> Iterator[str]:
    rows = figures["rows"]
    yield _HEAD
    yield from table(("step", "must hold"), _CHECKS)
    yield _NOTES
    yield _dates(rows)
    yield _versions(figures["environment"])
    yield ""
    yield from table(
        ("in all", ""), ((name, text) for name, text in total_lines(figures["totals"]))
    )
    yield "## Failures"
    yield ""
    failed = [row for row in rows if row["status"] != "passed"]
    if failed:
        yield from table(
            ("model", "step", "reason"),
            ((row["name"], row["step"], row["reason"]) for row in failed),
        )
    else:
        yield "None.\n"
    yield "## Where a rung gave something up"
    yield ""
    noted = [row for row in rows if row.get("notes")]
    yield from table(
        ("model", "rung", "notes"),
        ((row["name"], row["rung"], "; ".join(row["notes"])) for row in noted),
    )
    yield "## Refusals by reason"
    yield ""
    yield from table(
        ("a weight that", "weights", "models"),
        ((reason, str(weights), str(models)) for reason, weights, models in reasons(rows)),
    )
    yield "## Architectures"
    yield ""
    yield from table(
        ("model", "class", "verdict", "rung", "batch", "parameters", "matches", "refusals")
        + ("share", "scale", "processor s", "peak MiB", "run"),
        (_row(row) for row in rows),
    )


def _row(row: Mapping[str, Any]) -> tuple[str, ...]:
    found = share(row)
    return (
        row["name"],
        row.get("model", "-"),
        verdict(row) if folded(row) or row["status"] != "passed" else row["status"],
        row.get("rung", "-"),
        row.get("batch", "-"),
        f"{row['parameters']:,}" if "parameters" in row else "-",
        str(row.get("matches", "-")),
        str(len(row["refusals"])) if "refusals" in row else "-",
        "-" if found is None else f"{100 * found:.2f} %",
        f"{row['scale']:.2f}" if "scale" in row else "-",
        f"{row['processor_seconds']:.1f}",
        f"{row['peak_mib'] or 0:.0f}",
        row.get("date", "-"),
    )


def _dates(rows: Sequence[Mapping[str, Any]]) -> str:
    """Which rows are of which run; those without a date are older than two of the checks."""
    dates = sorted({row["date"] for row in rows if "date" in row})
    dated = sum("date" in row for row in rows)
    if not dates:
        return "No row is of a run that looked at attributes and at other sizes of a file.\n"
    span = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    said = f"{dated} of {len(rows)} rows are of {span}"
    if dated == len(rows):
        return f"{said}.\n"
    return (
        f"{said}. The others, without a date below, are of the full run before, which looked "
        "neither at attributes nor at other sizes of a file.\n"
    )


def _versions(environment: Mapping[str, Any]) -> str:
    known = environment["versions"]
    named = ", ".join(f"{name} {known[name]}" for name in ("torch", "timm", "transformers"))
    options = environment["options"]
    return (
        f"Measured with {named} on {environment['device']['name']}, {options['cores']} cores per "
        f"weight, jobs {options['jobs']}, load {environment['load_average']:.1f}.\n"
    )
