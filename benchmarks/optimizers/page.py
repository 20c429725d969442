"""docs/optimizers.md, made from the JSON of a run and from nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from bench.markdown import table

from optimizers.needs import LEFT_OUT
from optimizers.report import by_package, reason

_HEAD = """# Optimizers

What `opdf.Overparam` does with the optimizers that are out there: each class steps a small student
(a convolution and three linear layers, with and without biases) plain and over-parameterised,
driven as its own users drive it. This page is generated from `benchmarks/results/optimizers.json`;
`make optimizers` installs the packages beside the environment, tries every class in a process of
its own, and writes both.
"""

_CHECKS = (
    (
        "steps",
        "three steps; after each, W is what the cores make (an einsum in float64, within the "
        "rounding of float32), and what the plain student's step moves has moved",
    ),
    (
        "as on the cores",
        "without weight decay the weights are those of the same class over the cores themselves, "
        "in a student composed in its forward, within ten times what rounding its start changes, "
        "or a thousandth of the way that they went",
    ),
    (
        "state_dict, checkpoint",
        "a training that is saved, loaded into a new one and gone on with "
        "ends four steps later in the bits of one that was not stopped, where the plain one does",
    ),
    ("train / eval", "both switch the whole student; `fold` gives what evaluation saw"),
)

_NOTES = """A dash: nothing to check, or the plain class does not resume bit-equal itself. Where a
class needs more than a learning rate (a closure, `use_muon` in its groups, a backward that keeps
its graph, an optimizer to wrap) it gets it in both forms: `benchmarks/optimizers/needs.py`.
"""

_MARKS = {"ok": "yes", "refused": "refused", "raw": "raw error", "wrong": "**wrong**", "none": "-"}
_COLUMNS = (
    ("steps", ("steps", "steps, no bias")),
    ("as on the cores", ("trajectory", "trajectory, no bias")),
    ("state_dict", ("state_dict",)),
    ("checkpoint", ("save_checkpoint",)),
    ("train / eval", ("train and eval",)),
)
# The worst of several outcomes stands in a cell.
_ORDER = ("wrong", "raw", "refused", "ok", "none")
_TEXT = 400


def page(figures: Mapping[str, Any]) -> str:
    """The page as Markdown.

    Args:
        figures: The JSON of a run.
    """
    return "\n".join(_lines(figures)) + "\n"


def _lines(figures: Mapping[str, Any]) -> Iterator[str]:
    rows = figures["rows"]
    yield _HEAD
    yield from table(("in all", "classes"), _count_rows(figures["totals"]))
    yield _measured(figures["environment"])
    yield from table(("check", "must hold"), _CHECKS)
    yield _NOTES
    yield "## By package"
    yield ""
    yield from table(
        (
            "package",
            "version",
            "classes",
            "step plain",
            "step over-parameterised",
            "work",
            "refused",
            "raw error",
            "silently wrong",
        ),
        _package_rows(figures),
    )
    for title, verdict, text in _SECTIONS:
        yield f"## {title}"
        yield ""
        yield f"{text}\n"
        yield from _found(verdict, rows)
    yield "## Not tried"
    yield ""
    yield from table(("class", "because"), LEFT_OUT.items())
    yield "## Every class"
    yield ""
    for package, of in by_package(rows).items():
        yield f"### {package}"
        yield ""
        yield from table(("class", "verdict", *(name for name, _ in _COLUMNS)), map(_row, of))


_SECTIONS = (
    ("Silently wrong", "silently wrong", "No error, and not what the plain class does."),
    ("Errors that are not the product's own", "raw error", "The plain student can be stepped."),
    ("Refused", "refused", "With the sentence that the user reads, and where."),
    (
        "Steps no plain student either",
        "plain fails",
        "On this machine, a CPU, or as it is used here; they count nowhere above.",
    ),
)


def _count_rows(totals: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    able = totals["step a plain student"]
    yield "tried", str(totals["classes"])
    yield "step a plain student", str(able)
    for name in (
        "step an over-parameterised one",
        "works",
        "refused",
        "raw error",
        "silently wrong",
    ):
        label = {
            "works": "pass every check",
            "refused": "refused with a sentence (to step, or to be saved)",
            "raw error": "end in an error that is not the product's own",
        }.get(name, name)
        yield label, f"{totals[name]} ({100 * totals[name] / able:.1f} %)" if able else "0"


def _measured(environment: Mapping[str, Any]) -> str:
    return (
        f"Run on {environment['date']} with torch {environment['versions']['torch']} on "
        f"{environment['device']['name']}, Python {environment['python']}; steps that a package "
        "would compile run as they are written.\n"
    )


def _package_rows(figures: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for name, counts in figures["totals"]["packages"].items():
        keys = ("classes", "step a plain student", "step an over-parameterised one", "works")
        more = ("refused", "raw error", "silently wrong")
        version = figures["environment"]["packages"][name] or "-"
        yield name, version, *(str(counts[key]) for key in (*keys, *more))


def _found(verdict: str, rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    of = [row for row in rows if row["verdict"] == verdict]
    if not of:
        yield "None.\n"
        return
    yield from table(("class", "what it says"), ((row["name"], _cut(reason(row))) for row in of))


def _cut(text: str) -> str:
    return text if len(text) <= _TEXT else text[: _TEXT - 3] + "..."


def _row(row: Mapping[str, Any]) -> tuple[str, ...]:
    cells = (_mark(row["checks"], names) for _title, names in _COLUMNS)
    return row["name"].partition("/")[2], row["verdict"], *cells


def _mark(checks: Mapping[str, Any], names: tuple[str, ...]) -> str:
    kinds = [checks[name]["kind"] for name in names if name in checks]
    return _MARKS[min(kinds, key=_ORDER.index)] if kinds else "-"
