"""From runs to rows, plot and tables: `benchmarks/results/quality.json` and docs/evidence.md.

The page's sentences are written by hand; what stands between its two marks is replaced.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from quality import measured
from quality.plots import forest
from quality.rows import Row, rows_of, to_json
from quality.text.scores import scores_of as text_scores

_BEGIN, _END = "<!-- tables: begin -->", "<!-- tables: end -->"


def write(
    runs: Path, text: Path, path: Path, plot: Path | None = None, page: Path | None = None
) -> None:
    """Write the rows, and the plot and the page's tables where asked for.

    Args:
        runs: JSON of `python benchmarks/quality run`.
        text: JSON of `python benchmarks/quality/text run`; left out where it does not exist.
        path: Where the rows go.
        plot: Where the forest plot goes.
        page: The page between whose marks the tables go.
    """
    result = json.loads(runs.read_text())
    scores = measured.scores_of(result["units"])
    if text.exists():
        scores += text_scores(json.loads(text.read_text()))
    rows = rows_of([measured.with_question(found) for found in scores])
    rules = measured.rules_of(result["units"])
    about = {key: result[key] for key in ("device", "torch", "python", "budget")}
    ratios = {
        f"{u['task']} {u['optimizer']} {u['length']}": u["step_ratios"] for u in result["units"]
    }
    beside = {"machine": about, "step_ratios": ratios, "rules": rules}
    edges = measured.edges_of(result["units"])
    path.write_text(json.dumps(to_json(rows, **beside, edges=edges), indent=1) + "\n")
    tables = "\n\n".join((primary_table(rows), settings_table(rows), rules_table(rules)))
    print(tables)
    print(f"\n{len(edges)} winners of the tuning at an edge:", *edges, sep="\n  ")
    if plot is not None:
        forest(rows, plot)
    if page is not None:
        before, rest = page.read_text().split(_BEGIN)
        after = rest.split(_END)[1]
        page.write_text(f"{before}{_BEGIN}\n\n{tables}\n\n{_END}{after}")


def primary_table(rows: Sequence[Row]) -> str:
    """The six comparisons that decide."""
    lines = [
        "| task | endpoint | plain | mpo, n = 3 | difference (x 100) | Holm's interval | p (t) | "
        "p (sign flip) | p (Holm) | seeds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        if not is_primary(r):
            continue
        lines.append(
            f"| {r.task} | {r.endpoint} | {r.baseline_score:.4f} | {r.score:.4f} | "
            f"{100 * r.difference:+.2f} | {_interval(r)} | {r.p_t:.2g} | {r.p_sign_flip:.2g} | "
            f"{r.p_holm:.2g} | {r.seeds} |"
        )
    return "\n".join(lines)


def settings_table(rows: Sequence[Row]) -> str:
    """Every comparison: on how many tasks its interval lies above, across, below zero."""
    lines = [
        "| optimizer | start | run | comparison | endpoint | better / open / worse | "
        "mean difference |",
        "|---|---|---|---|---|---|---|",
    ]
    families: dict[tuple[str, str, str, str, str], list[Row]] = {}
    for r in rows:
        key = r.optimizer, r.start, r.length, f"{r.method} - {r.baseline}", r.endpoint
        families.setdefault(key, []).append(r)
    for key, members in families.items():
        better = sum(_better(r) > 0 for r in members)
        worse = sum(_better(r) < 0 for r in members)
        mean = sum(r.difference for r in members) / len(members)
        figure = f"{mean:+.4f} nats" if key[-1] == "kl" else f"{100 * mean:+.2f} points"
        open_ = len(members) - better - worse
        lines.append(f"| {' | '.join(key)} | {better} / {open_} / {worse} | {figure} |")
    return "\n".join(lines)


def rules_table(rules: Sequence[dict[str, Any]]) -> str:
    """Validation accuracy of the rules, and their means."""
    names = ("same", "divided", "matched")
    lines = ["| method | task | plain's best rate | that / n | matched |", "|---|---|---|---|---|"]
    found = {(r["method"], r["task"], r["rule"]): r["validation_accuracy"] for r in rules}
    for method in dict.fromkeys(r["method"] for r in rules):
        tasks = list(dict.fromkeys(r["task"] for r in rules if r["method"] == method))
        for task in tasks:
            lines.append(_rule_line(method, task, [found[method, task, n] for n in names]))
        means = [sum(found[method, t, n] for t in tasks) / len(tasks) for n in names]
        lines.append(_rule_line(method, "**mean**", means))
    return "\n".join(lines)


def is_primary(row: Row) -> bool:
    """Whether the row belongs to the primary family."""
    same = all(getattr(row, key) == value for key, value in measured.PRIMARY.items())
    return same and measured.PRIMARY_ENDPOINTS.get(row.endpoint) == row.optimizer


def _better(row: Row) -> int:
    """1 where Holm's interval says better, -1 worse, 0 open; a smaller KL is better."""
    sign = -1 if row.endpoint == "kl" else 1
    low, high = sorted((sign * row.ci_low, sign * row.ci_high))
    return (low > 0) - (high < 0)


def _interval(row: Row) -> str:
    return f"[{100 * row.ci_low:+.2f}, {100 * row.ci_high:+.2f}]"


def _rule_line(method: str, task: str, values: Iterable[float]) -> str:
    return f"| {method} | {task} | " + " | ".join(f"{value:.4f}" for value in values) + " |"
