"""The advice in words, as lines for the recipe, and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from opdf_compile.distill.advise.advice import Advice, Side
from opdf_compile.distill.advise.entrants import PLAIN
from opdf_compile.distill.advise.significance import Paired, sign_test

SCHEMA = "opdf-advise/1"


def recommendation(advice: Advice) -> str:
    """One or two sentences: what to do, and why."""
    if advice.verdict == "use":
        return f"Use {setting(advice.over)}: {_evidence(advice)}."
    if advice.verdict == "do-not-use":
        return (
            f"Do not use over-parameterisation here: {_evidence(advice)}. "
            f"Train the plain student at {setting(advice.plain, named=False)}."
        )
    if advice.verdict == "undecided":
        loser = "the plain student" if advice.gain > 0 else advice.over.method
        return (
            f"Undecided: {_evidence(advice)}, but the best setting found for {loser} lies at the "
            "edge of what there was time to try, so that a better one may lie beyond it. Give "
            f"--budget {2 * advice.budget:.0f}."
        )
    return (
        f"No difference could be shown: {_evidence(advice)}. {_needed(advice)}Until then the plain "
        f"student is the simpler choice, at {setting(advice.plain, named=False)}."
    )


def recipe_lines(advice: Advice) -> str:
    """The lines of the recipe that follow the advice, as TOML with comments that say where to.

    None where a side was not tuned.
    """
    if advice.verdict == "undecided":
        return ""
    side = advice.over if advice.verdict == "use" else advice.plain
    lines = [f"# Remove {name}." for name in side.without]
    if side.lines:
        lines.append("[plan]            # In place of the recipe's section, if it has one.")
        lines += [f"{key} = {json.dumps(value)}" for key, value in side.lines.items()]
    rates = [f"lr = {side.lr!r}", f"weight_decay = {side.weight_decay!r}"]
    head = "[optimizer]       # These keys in place of the recipe's; the others stay."
    return "\n".join([*lines, *[""] * bool(lines), head, *rates])


def advice_json(advice: Advice) -> dict[str, Any]:
    """All of it as plain values, with a schema."""
    return {
        "schema": SCHEMA,
        "verdict": advice.verdict,
        "recommendation": recommendation(advice),
        "recipe_lines": recipe_lines(advice),
        "metric": advice.metric,
        "higher_is_better": advice.higher_is_better,
        "comparison": comparison_json(advice.comparison, advice.seeds, advice.seconds_needed),
        "plain": side_json(advice.plain),
        "over_parameterised": side_json(advice.over),
        "run": {"plain_steps": advice.plain.final_steps, "recipe_steps": advice.whole},
        "budget_seconds": advice.budget,
        "seconds": advice.seconds,
        "loading_seconds": advice.spent,
        "final_share": advice.final_share,
        "examples_per_pair": advice.scored,
        "folds": folds(advice.mixed),
        "notes": list(advice.notes),
    }


def setting(side: Side, *, named: bool = True) -> str:
    """A side's choice: "md at lr 2e-5, weight decay 0.01"."""
    rates = f"lr {side.lr:g}, weight decay {side.weight_decay:g}"
    return f"{side.method} at {rates}" if named and side.method != PLAIN else rates


def _evidence(advice: Advice) -> str:
    ours, theirs, count = advice.over.diverged, advice.plain.diverged, len(advice.seeds)
    found, name = advice.comparison, advice.over.method
    if ours or theirs or found is None:
        wins, losses = advice.wins
        return (
            f"in equal time {name} wins {wins} and loses {losses} of {count} pairs of runs in "
            f"{advice.metric}, where {ours} of its runs and {theirs} of the plain student's "
            f"diverged and lost (sign test, p = {sign_test(wins, losses):.2g}); take a lower rate "
            "where runs diverge"
        )
    better = "better" if found.mean > 0 else "worse"
    size = f"{abs(found.mean):.3g} {better} than" if found.mean else "as good as"
    return (
        f"in equal time {name} is {size} the plain student in {advice.metric}, each "
        "at its own best setting "
        f"(95 % interval {found.low:+.3g} to {found.high:+.3g}, {count} pairs of runs, "
        f"p = {found.p_t:.2g}, sign flips {found.p_sign_flip:.2g})"
    )


def _needed(advice: Advice) -> str:
    found, seconds = advice.comparison, advice.seconds_needed
    if found is None or found.seeds_needed is None or seconds is None:
        return ""
    more = f" --pairs {found.seeds_needed}" if found.seeds_needed > advice.most_pairs else ""
    return (
        f"To see a difference of this size in 8 of 10 races takes {found.seeds_needed} pairs of "
        f"runs, each scored on {advice.scored} other examples, and about --budget "
        f"{math.ceil(seconds)}{more}. "
    )


def comparison_json(
    found: Paired | None, seeds: Sequence[int], seconds_needed: float | None
) -> dict[str, Any] | None:
    """A paired comparison as plain values; None where no seed has both scores."""
    if found is None:
        return None
    return {
        "difference": found.mean,
        "ci_low": _finite(found.low),
        "ci_high": _finite(found.high),
        "p_t": found.p_t,
        "p_sign_flip": found.p_sign_flip,
        "differences": list(found.differences),
        "seeds": list(seeds),
        "seeds_needed": found.seeds_needed,
        "seconds_needed": seconds_needed,
    }


def side_json(side: Side) -> dict[str, Any]:
    """A side as plain values."""
    values = {name: value for name, value in vars(side).items() if name != "tried"}
    values |= {"lines": dict(side.lines), "scores": list(side.scores)}
    return {**values, "tried": [vars(row) for row in side.tried]}


def folds(mixed: bool) -> str:
    """What the final comparison was scored on."""
    return "parts of the training part" if mixed else "half of the validation part"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
