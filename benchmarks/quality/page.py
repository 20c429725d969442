"""From runs to rows, plot and tables: `benchmarks/results/quality.json` and docs/evidence.md.

The page's sentences are written by hand; what stands between the marks of a table is replaced.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.markdown import filled

from quality import measured
from quality.plots import forest
from quality.rows import Row, rows_of, to_json
from quality.tables import primary_table, rules_table, settings_table, text_table
from quality.text import scores as on_text


def write(
    runs: Path,
    text: Path,
    path: Path,
    plot: Path | None = None,
    page: Path | None = None,
    extended: Path | None = None,
) -> None:
    """Write the rows, and the plot and the page's tables where asked for.

    Args:
        runs: JSON of `python benchmarks/quality run`.
        text: JSON of `python benchmarks/quality/text run`; left out where it does not exist.
        path: Where the rows go.
        plot: Where the forest plot goes.
        page: The page between whose marks the tables go.
        extended: JSON of `run --size extended`; left out where it does not exist.
    """
    result = json.loads(runs.read_text())
    scores = measured.scores_of(result["units"])
    edges = measured.edges_of(result["units"])
    if text.exists():
        read = json.loads(text.read_text())
        scores += on_text.scores_of(read)
        edges += on_text.edges_of(read)
    rows = rows_of([measured.with_question(found) for found in scores])
    rules = measured.rules_of(result["units"])
    about = {key: result[key] for key in ("device", "torch", "python", "budget")}
    ratios = {
        f"{u['task']} {u['optimizer']} {u['length']}": u["step_ratios"] for u in result["units"]
    }
    beside = {"machine": about, "step_ratios": ratios, "rules": rules, "edges": edges}
    path.write_text(json.dumps(to_json(rows, **beside), indent=1) + "\n")
    tables = _tables(rows, rules, edges)
    if extended is not None and extended.exists():
        tables["more-tuning"] = _more_tuning(json.loads(extended.read_text()))
    print(*(f"{name}:\n{table}\n" for name, table in tables.items()), sep="\n")
    if plot is not None:
        forest(rows, plot)
    if page is not None:
        page.write_text(filled(page.read_text(), tables))


def _tables(
    rows: list[Row], rules: list[dict[str, Any]], edges: list[dict[str, Any]]
) -> dict[str, str]:
    tables = {
        "primary": primary_table(rows, edges),
        "accuracy": settings_table(rows, "accuracy"),
        "kl": settings_table(rows, "kl"),
    }
    if any(r.endpoint == "cosine" for r in rows):
        tables |= {"cosine": text_table(rows, "cosine"), "people": text_table(rows, "people")}
    return {**tables, "rules": rules_table(rules)}


def _more_tuning(result: Mapping[str, Any]) -> str:
    """The primary table again, after more rounds of trials for both sides."""
    scores = [measured.with_question(found) for found in measured.scores_of(result["units"])]
    return primary_table(rows_of(scores), measured.edges_of(result["units"]))
