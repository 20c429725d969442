"""The ruling as lines for the recipe, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from opdf_compile.distill.advise.contest.ruling import Basis, Rounded, Ruling, Standing
from opdf_compile.distill.advise.contest.wording import ruling_words
from opdf_compile.distill.advise.sentences import SCHEMA, comparison_json, folds, side_json


def ruling_lines(ruling: Ruling) -> str:
    """The lines of the recipe that follow the advice, as TOML with comments that say where to.

    None where a side was not tuned.
    """
    decision = ruling.decision
    if decision.verdict == "undecided":
        return ""
    wins = decision.verdict in ("use", "more-steps")
    side = decision.of.side if wins else ruling.plain
    parts = [f"# Remove {name}." for name in side.without]
    if side.lines:
        parts += ["[plan]            # In place of the recipe's section, if it has one."]
        parts += [f"{key} = {json.dumps(value)}" for key, value in side.lines.items()]
    rates = {"lr": side.lr, "weight_decay": side.weight_decay}
    whole = decision.of.optimizer if wins else {}
    head = "[optimizer]       # These keys in place of the recipe's; the others stay."
    if whole:
        head = "[optimizer]       # In place of the recipe's section."
    parts += [*[""] * bool(parts), head, *_toml({**whole, **rates})]
    if wins and decision.of.times != 1:
        steps = round(decision.of.times * ruling.whole)
        parts += ["", "[training]        # In place of epochs or steps.", f"steps = {steps}"]
    return "\n".join(parts)


def _toml(values: Mapping[str, Any]) -> list[str]:
    # JSON's texts, numbers, truth values and lists of them are TOML's.
    return [f"{key} = {json.dumps(value)}" for key, value in values.items()]


def ruling_json(ruling: Ruling) -> dict[str, Any]:
    """All of it as plain values; what a race of two sides has, the best contender fills."""
    decision = ruling.decision
    best = decision.of if decision.of in ruling.contenders else ruling.contenders[0]
    basis = decision.by if decision.by in best.bouts else ruling.bases[0]
    found = best.bouts[basis].duel.comparison
    return {
        "schema": SCHEMA,
        "verdict": ruling.verdict,
        "recommendation": ruling_words(ruling),
        "recipe_lines": ruling_lines(ruling),
        "metric": ruling.metric,
        "higher_is_better": ruling.higher_is_better,
        "comparison": comparison_json(found, ruling.seeds, None),
        "plain": {**side_json(ruling.plain), "int8": _int8_json(ruling.plain_int8, ruling)},
        "over_parameterised": side_json(best.side),
        "equal": list(ruling.bases),
        "contenders": [_standing_json(standing, ruling) for standing in ruling.contenders],
        "regime": {
            "improves_with_steps": ruling.improving is not None,
            "longer": [_standing_json(standing, ruling) for standing in ruling.longer],
        },
        "run": {"plain_steps": ruling.plain.final_steps, "recipe_steps": ruling.whole},
        "budget_seconds": ruling.budget,
        "seconds": ruling.seconds,
        "loading_seconds": ruling.spent,
        "examples_per_pair": ruling.scored,
        "folds": folds(ruling.mixed),
        "notes": list(ruling.notes),
    }


def _standing_json(standing: Standing, ruling: Ruling) -> dict[str, Any]:
    return {
        "name": standing.name,
        "times": standing.times,
        "step_cost": standing.cost,
        "optimizer": dict(standing.optimizer),
        **{f"equal_{b}": _bout_json(standing, b, ruling) for b in standing.bouts},
        "int8": _int8_json(standing.int8, ruling),
        "side": side_json(standing.side),
    }


def _bout_json(standing: Standing, basis: Basis, ruling: Ruling) -> dict[str, Any]:
    bout = standing.bouts[basis]
    wins, losses = bout.duel.wins
    return {
        "steps": bout.steps,
        "plain_steps": bout.plain_steps,
        "time_ratio": bout.time,
        "plain_scores": list(bout.duel.theirs),
        "comparison": comparison_json(bout.duel.comparison, ruling.seeds, None),
        "wins": wins,
        "losses": losses,
        "p": bout.duel.p,
        "p_corrected": ruling.corrected.get((standing.name, basis)),
    }


def _int8_json(rounded: Rounded | None, ruling: Ruling) -> dict[str, Any] | None:
    if rounded is None:
        return None
    return {
        "before": list(rounded.before),
        "after": list(rounded.after),
        "drop": rounded.drop(ruling.higher_is_better),
    }
