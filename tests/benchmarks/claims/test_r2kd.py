"""The factorial of R2KD: which rows an effect is made of, and that each recipe is one."""

from __future__ import annotations

from pathlib import Path

import pytest
from claims.systems import r2kd
from claims.systems.r2kd import COMBINATIONS, LOOKS, LOSSES, PRUNED, STUDENT, effects

from opdf_compile.distill.recipe import parse_recipe


def test_an_effect_is_the_mean_over_the_others() -> None:
    """Scores that are sums of 4, 2 and 1 for the parts: each part's effect is its own number."""
    scores = {
        parts: [4.0 * parts[0] + 2.0 * parts[1] + 1.0 * parts[2] + seed for seed in range(3)]
        for parts in COMBINATIONS
    }
    found = [[a - b for a, b in zip(*sides, strict=True)] for sides in effects(scores)]
    assert found == [[4.0] * 3, [2.0] * 3, [1.0] * 3]


@pytest.mark.parametrize("parts", COMBINATIONS)
def test_each_combination_is_a_recipe(parts: r2kd.Parts, tmp_path: Path) -> None:
    text = STUDENT
    given = {"loss": LOSSES[parts[0]], "look": LOOKS[parts[1]], "pruned": PRUNED[parts[2]]}
    given |= {"teacher": "t.safetensors", "rate": "0.01", "weight": "2.0"}
    for name, value in given.items():
        text = text.replace("{" + name + "}", value)
    recipe = parse_recipe(text)
    assert recipe.loss[0].kind == ("correlation" if parts[0] else "hinton")
    assert (recipe.augment is not None) is parts[1]
    assert recipe.teacher is not None and (recipe.teacher.pruned == 0.1) is parts[2]
