"""Random plans: every way to ask for one, then edits of its JSON that keep it valid."""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass
from math import prod
from typing import Any

from hypothesis import strategies as st

import opdf_compile as opdf
from opdf_compile.errors import PlanError
from opdf_compile.graph.rows import MatchReport
from opdf_compile.graph.tracing import Traced

# Requests that a small model may not be able to grant; then the plan is asked for plainly.
NOT_GRANTED = re.compile(r"cannot be reached|leaves no choice|no weight is left|no Linear or Conv")


@dataclass(frozen=True)
class PlanRecipe:
    """How a plan is made.

    Attributes:
        request: "cores", "scale" or "overhead".
        value: What is asked for.
        min_size: As of `opdf.plan`.
        seed: Of the choice of globs and of the edits; 0 makes none.
    """

    request: str
    value: float
    min_size: int
    seed: int


plan_recipes = st.one_of(
    st.builds(
        PlanRecipe, st.just("cores"), st.integers(2, 7), st.integers(1, 20), st.integers(0, 99)
    ),
    st.builds(PlanRecipe, st.just("scale"), st.floats(1.05, 4.0), st.just(1), st.integers(0, 99)),
    st.builds(PlanRecipe, st.just("overhead"), st.floats(1.1, 9.0), st.just(1), st.integers(0, 99)),
)


def make_plan(traced: Traced, report: MatchReport, recipe: PlanRecipe) -> opdf.Plan | None:
    """The recipe's plan for a model, or None where the model has no weight to plan."""
    rng = random.Random(recipe.seed)
    made = _asked(traced, report, recipe, rng if recipe.seed else None)
    return _edited(made, rng) if made is not None and recipe.seed else made


def _asked(
    traced: Traced, report: MatchReport, recipe: PlanRecipe, rng: random.Random | None
) -> opdf.Plan | None:
    names = [m.key for m in report.matches] + [r.key for r in report.refusals if r.offer]
    options: dict[str, Any] = {recipe.request: recipe.value, "min_size": recipe.min_size}
    if rng is not None and names and rng.random() < 0.5:
        options["include"] = rng.sample(names, rng.randint(1, len(names)))
    elif rng is not None and len(names) > 1 and rng.random() < 0.5:
        options["exclude"] = [rng.choice(names)]
    for asked in (options, {"cores": 3, "min_size": 1}):
        try:
            return opdf.plan(traced, **asked)
        except PlanError as error:
            if not NOT_GRANTED.search(str(error)):
                raise
    return None


def _edited(made: opdf.Plan, rng: random.Random) -> opdf.Plan:
    """What a person may do to a plan file: other modes, another order, fewer weights."""
    value = made.to_json()
    for entry in value["entries"]:
        if rng.random() < 0.6:
            spec, cores = entry["spec"], rng.randint(2, 7)
            for modes in ("out_modes", "in_modes"):
                spec[modes] = split(prod(spec[modes]), cores, rng)
            spec.pop("bonds", None)
    rng.shuffle(value["entries"])
    if rng.random() < 0.3:
        del value["entries"][1:]
    return opdf.Plan.from_json(json.loads(json.dumps(value)))


def split(number: int, places: int, rng: random.Random) -> list[int]:
    """A product of `places` factors, the primes dealt out at random."""
    factors = [1] * places
    divisor = 2
    while number > 1:
        while number % divisor == 0:
            factors[rng.randrange(places)] *= divisor
            number //= divisor
        divisor += 1
    return factors
