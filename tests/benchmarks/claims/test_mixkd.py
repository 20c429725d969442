"""The experiment of MixKD: which images a share keeps, and what tells the two sides apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from claims.systems.mixkd import RECIPE, SHARES, _written

from opdf_compile.distill.recipe import parse_recipe


@pytest.mark.parametrize("share", SHARES)
def test_a_share_of_each_class_is_kept(share: float, tmp_path: Path) -> None:
    """The parts that are chosen and measured with stay whole."""
    file = tmp_path / _written(share, tmp_path)
    with np.load(file) as found, np.load(tmp_path / _written(1.0, tmp_path)) as whole:
        kept, all_ = (np.bincount(arrays["train_labels"]) for arrays in (found, whole))
        assert (np.abs(kept - share * all_) <= 0.5).all()
        assert len(found["train_images"]) == kept.sum()
        for part in ("validation", "test"):
            assert np.array_equal(found[f"{part}_images"], whole[f"{part}_images"])


def test_the_sides_differ_in_the_teacher_on_mixes_alone() -> None:
    text = RECIPE.replace("{source}", "digits").replace("{rate}", "0.01")
    sides = [
        parse_recipe(text.replace("{weight}", "1.0").replace("{there}", there))
        for there in ("1.0", "0.0")
    ]
    told = [recipe.model_dump() for recipe in sides]
    assert [one["augment"].pop("teacher") for one in told] == [1.0, 0.0]
    assert told[0] == told[1]
