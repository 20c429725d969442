"""Tables of study 2 for docs/evidence.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import mean

from quality.second.methods import PLAIN
from quality.second.plan import PRIMARY, REGIMES, Stage
from quality.second.rows import DOUBLED, Outcome, Row

OPTIMIZERS = {"adamw": "AdamW", "sgd": "SGD", "muon": "Muon"}


def comparisons_table(rows: Sequence[Row]) -> str:
    """Every comparison of its own: both sides, the difference and its intervals."""
    lines = [
        "| task | student, loss | regime | method (optimizer) | baseline (optimizer) | difference "
        "(points) | Holm's interval | p (t) | p (sign flip) | p (Holm) | seeds | at an edge |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        o = r.outcome
        lines.append(
            f"| {o.task} | {o.student}, {o.loss} | {_regime(o)} | "
            f"{o.method} {100 * r.score:.2f} ({OPTIMIZERS[o.optimizer]}) | "
            f"{o.baseline} {100 * r.baseline_score:.2f} ({OPTIMIZERS[o.baseline_optimizer]}) | "
            f"{100 * r.difference:+.2f} | [{100 * r.ci_low:+.2f}, {100 * r.ci_high:+.2f}] | "
            f"{r.p_t:.2g} | {r.p_sign_flip:.2g} | {r.p_holm:.2g} | {len(o.ours)} | "
            f"{'; '.join(o.edges) or 'no'} |"
        )
    return "\n".join(lines)


def methods_table(rows: Sequence[Row]) -> str:
    """Methods by setting: tasks above / across / below zero, and the mean difference in points.

    The last column is the processor time of a run at equal steps, over that of the baseline's.
    """
    cells: dict[tuple[str, str], dict[tuple[str, str, str], list[Row]]] = {}
    for r in (row for row in every_trial(rows) if row.outcome.regime in REGIMES):
        o = r.outcome
        columns = cells.setdefault((o.method, o.baseline), {})
        columns.setdefault((o.student, o.loss, o.regime), []).append(r)
    found = {setting for columns in cells.values() for setting in columns}
    settings = sorted(
        found, key=lambda s: (s[:2] != ("deep", "distil"), s[:2], REGIMES.index(s[2]))
    )
    heads = [f"{student}, {loss}, {regime}" for student, loss, regime in settings]
    lines = [
        f"| comparison | {' | '.join(heads)} | time of a run |",
        "|---" * (len(heads) + 2) + "|",
    ]
    for (method, baseline), columns in cells.items():
        texts = [_counted(columns.get(setting, ())) for setting in settings]
        lines.append(f"| {method} - {baseline} | {' | '.join(texts)} | {_time(columns)} |")
    return "\n".join(lines)


def _time(columns: Mapping[tuple[str, str, str], Sequence[Row]]) -> str:
    found = [
        row.outcome.processor_time
        for (_student, _loss, regime), of in columns.items()
        if regime == "fixed"
        for row in of
    ]
    return f"{min(found):.1f} to {max(found):.1f}" if found else ""


def trials_table(rows: Sequence[Row]) -> str:
    """Mean difference to plain after so many trials of both sides, and both scores, over the tasks.

    So a method's score after few trials can be read beside plain's after many.
    """
    mine = [r for r in rows if r.outcome.regime == "fixed" and r.outcome.baseline == "plain"]
    numbers = sorted({r.outcome.after for r in mine} - {0})
    heads = [f"after {number} trials" for number in numbers] + ["after all"]
    lines = [f"| method, student, loss | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    sides = dict.fromkeys((r.outcome.method, r.outcome.student, r.outcome.loss) for r in mine)
    for side in sides:
        of = [r for r in mine if (r.outcome.method, r.outcome.student, r.outcome.loss) == side]
        cells = [_scored([r for r in of if r.outcome.after == number]) for number in (*numbers, 0)]
        lines.append(f"| {', '.join(side)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _scored(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    ours, theirs = (
        mean(100 * score for score in side)
        for side in zip(*((r.score, r.baseline_score) for r in rows), strict=True)
    )
    return f"{ours - theirs:+.2f} ({ours:.2f}, plain {theirs:.2f})"


def cost_table(rows: Sequence[Row]) -> str:
    """What a step of each method costs, in plain AdamW steps: the range over tasks and students."""
    costs: dict[tuple[str, str], list[float]] = {}
    for r in rows:
        if r.outcome.cost:
            costs.setdefault((r.outcome.method, r.outcome.optimizer), []).append(r.outcome.cost)
    lines = ["| method, optimizer | step, in plain AdamW steps |", "|---|---|"]
    for (method, optimizer), found in costs.items():
        text = f"{min(found):.2f} to {max(found):.2f}" if len(found) > 1 else f"{found[0]:.2f}"
        lines.append(f"| {method}, {OPTIMIZERS[optimizer]} | {text} |")
    return "\n".join(lines)


def stages_table(stages: Sequence[Stage], whole: Callable[[Stage], bool]) -> str:
    """What was asked, in its order, and what has been run.

    Args:
        stages: Of the study.
        whole: Whether nothing of a stage is missing.
    """
    lines = [
        "| student, loss, regime | methods | tasks | trials | tuning seeds | seeds | run |",
        "|---|---|---|---|---|---|---|",
    ]
    for stage in stages:
        size, others = stage.size, [name for name in stage.methods if name != PLAIN.name]
        lines.append(
            f"| {stage.student}, {stage.loss}, {stage.regime} | {', '.join(others)} | "
            f"{len(stage.tasks)} | {size.trials} to {size.most_trials} | {size.tuning_seeds} | "
            f"{size.seeds} | {'yes' if whole(stage) else 'not yet'} |"
        )
    return "\n".join(lines)


def primary(rows: Sequence[Row]) -> list[Row]:
    """What decides: the primary method in the primary setting."""
    wanted = ("deep", "distil", "fixed", PRIMARY, "plain", 0)
    return [r for r in rows if r.outcome.family == wanted]


def saturated(rows: Sequence[Row]) -> list[Row]:
    """Where plain's doubling stopped, or at its limit; and against plain with twice the steps."""
    return [r for r in every_trial(rows) if r.outcome.regime in ("saturated", DOUBLED)]


def every_trial(rows: Sequence[Row]) -> list[Row]:
    """Comparisons of what all trials chose."""
    return [r for r in rows if r.outcome.after == 0]


def _regime(of: Outcome) -> str:
    steps = f" ({of.steps} against {of.baseline_steps} steps)"
    return of.regime + (steps if of.steps != of.baseline_steps else "")


def _counted(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    above, below = (sum(r.better == sign for r in rows) for sign in (1, -1))
    difference = mean(100 * r.difference for r in rows)
    return f"{above} / {len(rows) - above - below} / {below}, {difference:+.2f}"
