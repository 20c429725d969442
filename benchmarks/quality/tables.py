"""Tables of docs/evidence.md: what decides, every setting, the text task, the rules for a rate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from quality import measured
from quality.rows import Row
from quality.text.scores import TASK as TEXT

SETTINGS = (
    ("sgd", "warm", "short"),
    ("sgd", "random", "short"),
    ("sgd", "warm", "long"),
    ("sgd", "random", "long"),
    ("adamw", "warm", "short"),
    ("adamw", "random", "short"),
)
OPTIMIZERS = {"sgd": "SGD", "adamw": "AdamW"}


def primary_table(rows: Sequence[Row], edges: Sequence[Mapping[str, Any]] = ()) -> str:
    """The comparisons that decide."""
    lines = [
        "| task | endpoint | plain | mpo, n = 3 | difference (x 100) | Holm's interval | p (t) | "
        "p (sign flip) | p (Holm) | seeds | tuning ended at an edge |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in filter(is_primary, rows):
        at = [e for e in edges if all(e[k] == getattr(r, k) for k in ("task", *_SETTING_KEYS))]
        said = [f"{e['method']}: {', '.join(e['axes'])}" for e in at if e["method"] in _SIDES]
        lines.append(
            f"| {r.task} | {r.endpoint} | {r.baseline_score:.4f} | {r.score:.4f} | "
            f"{100 * r.difference:+.2f} | {_interval(r)} | {r.p_t:.2g} | {r.p_sign_flip:.2g} | "
            f"{r.p_holm:.2g} | {r.seeds} | {'; '.join(said) or 'no'} |"
        )
    return "\n".join(lines)


def settings_table(rows: Sequence[Row], endpoint: str) -> str:
    """Every comparison in every setting: above / across / below zero, and the mean difference."""
    found: dict[tuple[str, str], dict[tuple[str, str, str], list[Row]]] = {}
    for r in rows:
        if r.endpoint == endpoint:
            place = found.setdefault((r.method, r.baseline), {})
            place.setdefault((r.optimizer, r.start, r.length), []).append(r)
    shown = [s for s in SETTINGS if any(s in columns for columns in found.values())]
    heads = [f"{OPTIMIZERS[optimizer]} {start} {length}" for optimizer, start, length in shown]
    lines = [f"| comparison | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for (method, baseline), columns in found.items():
        cells = [_cell(columns.get(setting, ()), endpoint) for setting in shown]
        lines.append(f"| {method} - {baseline} | {' | '.join(cells)} |")
    return "\n".join(lines)


def text_table(rows: Sequence[Row], endpoint: str) -> str:
    """The text task: differences x 100 with their intervals, a column for each setting."""
    mine = [r for r in rows if (r.task, r.endpoint) == (TEXT, endpoint)]
    settings = sorted(
        {(r.start, r.length) for r in mine}, key=lambda s: (s[0] != "warm", s[1][0] == "l")
    )
    heads = [f"{start} {length}" for start, length in settings]
    lines = [f"| comparison | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for pair in dict.fromkeys((r.method, r.baseline) for r in mine):
        at = {(r.start, r.length): r for r in mine if (r.method, r.baseline) == pair}
        cells = [
            f"{100 * at[s].difference:+.2f} {_interval(at[s])}" if s in at else "" for s in settings
        ]
        lines.append(f"| {pair[0]} - {pair[1]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def rules_table(rules: Sequence[Mapping[str, Any]]) -> str:
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


_SETTING_KEYS = ("optimizer", "start", "length")
_SIDES = ("plain", "mpo")


def is_primary(row: Row) -> bool:
    """Whether the row belongs to the primary family."""
    same = all(getattr(row, key) == value for key, value in measured.PRIMARY.items())
    return same and measured.PRIMARY_ENDPOINTS.get(row.endpoint) == row.optimizer


def better(row: Row) -> int:
    """1 where Holm's interval says better, -1 worse, 0 open; a smaller KL is better."""
    sign = -1 if row.endpoint == "kl" else 1
    low, high = sorted((sign * row.ci_low, sign * row.ci_high))
    return (low > 0) - (high < 0)


def _cell(rows: Sequence[Row], endpoint: str) -> str:
    if not rows:
        return ""
    above, below = (sum(better(r) == sign for r in rows) for sign in (1, -1))
    mean = sum(r.difference for r in rows) / len(rows)
    figure = f"{mean:+.3f}" if endpoint == "kl" else f"{100 * mean:+.2f}"
    return f"{above} / {len(rows) - above - below} / {below}, {figure}"


def _interval(row: Row) -> str:
    return f"[{100 * row.ci_low:+.2f}, {100 * row.ci_high:+.2f}]"


def _rule_line(method: str, task: str, values: Iterable[float]) -> str:
    return f"| {method} | {task} | " + " | ".join(f"{value:.4f}" for value in values) + " |"
