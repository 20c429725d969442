"""The tables of docs/runtimes.md, from the JSON of runtimes.py."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.markdown import filled, table

from opdf_compile.files.atomic import atomic_write

RESULTS = Path(__file__).parents[1] / "results" / "runtimes.json"
Row = Mapping[str, Any]

# A deep network's rounding errors grow with the batch by chance, not tenfold.
_SAME, _ROUNDING = 10.0, 1e-6
# Above it the numbers are another function's, below it another precision's.
_WRONG = 0.05


def write_page(page: Path) -> None:
    """Put the tables of the newest results into their places in the page."""
    value = json.loads(RESULTS.read_text(encoding="utf-8"))
    with atomic_write(page) as temporary:
        text = filled(page.read_text(encoding="utf-8"), tables_of(value))
        temporary.write_text(text, encoding="utf-8")


def tables_of(value: Mapping[str, Any]) -> dict[str, str]:
    """The tables by the name of their place.

    Args:
        value: The JSON of runtimes.py.
    """
    rows: Sequence[Row] = value["rows"]
    made = {
        "conditions": [_conditions(value)],
        "runtimes-errors": _errors(rows),
        "runtimes-settings": _settings(rows),
        "runtimes-reasons": _reasons(rows),
    }
    return {name: "\n".join(lines).strip() for name, lines in made.items()}


def batch_words(row: Row) -> str:
    """The largest error over the batches, or why there is none."""
    if row.get("refused"):
        return "refused"
    found = row["batches"]
    errors = [entry.get("error") for entry in found.values()]
    if row.get("ended"):
        return "ends the process"
    if not found or any(error is None for error in errors):
        stopped = [size for size, entry in found.items() if entry.get("error") is None]
        if len(stopped) == len(found):
            return "does not run"
        return f"stops at batch {stopped[0]}"
    worst = max(errors)
    return f"{worst:.0%} off" if worst > _WRONG else f"{worst:.0e}"


def free_batch(row: Row) -> str:
    """Whether the batch may change on a loaded file, as a word."""
    if row.get("refused"):
        return "-"
    errors = [entry.get("error") for entry in row["batches"].values()]
    if row.get("ended") or not errors or any(error is None for error in errors):
        return "no"
    return "yes" if max(errors) <= _SAME * max(errors[0], _ROUNDING) else "no"


def _conditions(value: Mapping[str, Any]) -> str:
    found = value["environment"]
    sizes = ", ".join(map(str, value["batches"]))
    units = ", ".join(found["units"]) or "none that the system tells"
    return (
        f"{found['device']['name']} (units: {units}), torch {found['versions']['torch']}, "
        f"{found['date']}; batches {sizes} in this order on one loaded file, one thread."
    )


def _names(rows: Sequence[Row], key: str) -> list[str]:
    return list(dict.fromkeys(row[key] for row in rows))


def _errors(rows: Sequence[Row]) -> Iterator[str]:
    models = _names(rows, "model")
    cells = {(row["runtime"], row["model"]): row for row in rows}
    yield from table(
        ("runtime", *(model.replace("_", " ") for model in models)),
        (
            (f"`{name}`", *(_cell(cells.get((name, model))) for model in models))
            for name in _names(rows, "runtime")
        ),
    )


def _cell(row: Row | None) -> str:
    if row is None:
        return "-"
    words, verdict = batch_words(row), row["verdict"]
    return f"{words}, {verdict}" if verdict else words


def _settings(rows: Sequence[Row]) -> Iterator[str]:
    lines = []
    for name in _names(rows, "runtime"):
        ours = [row for row in rows if row["runtime"] == name]
        told: Row = next((row for row in ours if "version" in row), {})
        options = [f"{key}={text}" for key, text in told.get("options", {}).items()]
        words = [free_batch(row) for row in ours]
        ran = [word for word in words if word != "-"]
        lines.append(
            (
                f"`{name}`",
                str(told.get("version", "-")),
                told.get("precision") or "the file's",
                ", ".join(f"`{option}`" for option in options),
                f"{ran.count('yes')} of {len(ran)}",
            )
        )
    yield from table(("runtime", "version", "computes in", "pinned", "batch may change"), lines)


def _reasons(rows: Sequence[Row]) -> Iterator[str]:
    """A line for each cell that is no pass, with the sentences as they were said."""
    for row in rows:
        stopped = [
            f"at batch {size}: {entry['stopped']}"
            for size, entry in row["batches"].items()
            if "stopped" in entry
        ]
        said = [row.get("refused"), row.get("ended"), *stopped[:1], *row["sentences"]]
        words = [text for text in said if text]
        if words:
            text = "; ".join(text.rstrip(".") for text in words)
            yield f"- `{row['runtime']}`, {row['model']}: {text}."
