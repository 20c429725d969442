"""Glyphs: the same draws each time, other ones for each part, variants that share nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from quality.second.glyphs import BY_NAME, VARIANTS, Variant, drawn, masters, shared

from opdf_compile.errors import InputError

UPPER = BY_NAME["glyphs-upper"]


def test_a_part_is_the_same_each_time_and_another_part_is_another() -> None:
    images, labels = drawn(UPPER, 52, 0)
    again, same = drawn(UPPER, 52, 0)
    assert np.array_equal(images, again) and np.array_equal(labels, same)
    other, _labels = drawn(UPPER, 52, 1)
    flat = images.reshape(52, -1)
    # The nearest image of the other part is no copy of it.
    apart = np.linalg.norm(flat[:, None] - other.reshape(52, -1)[None], axis=2)
    assert apart.min() > 0.5


def test_images_hold_every_class_equally_often() -> None:
    images, labels = drawn(UPPER, 78, 0)
    assert images.shape == (78, 1, 16, 16) and images.dtype == np.float32
    assert np.bincount(labels).tolist() == [3] * 26


def test_variants_share_no_character_font_or_seed() -> None:
    assert shared(VARIANTS) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"seed": UPPER.seed}, f"seed {UPPER.seed}"),
        ({"characters": "xAy"}, "A"),
        ({"fonts": ("cmb10", "cmr10")}, "cmr10"),
    ],
)
def test_what_two_variants_share_is_told(change: dict[str, object], told: str) -> None:
    other = replace(Variant("other", "xy", ("cmb10",), 1), **change)
    assert shared([UPPER, other]) == [f"glyphs-upper and other: {told}"]


def test_every_font_of_a_variant_draws_every_character_differently() -> None:
    for variant in VARIANTS:
        found = masters(variant.fonts, variant.characters)
        ink = found.sum((2, 3))
        assert ink.min() > 10
        for font in found:
            apart = (font[:, None] - font[None]).abs().sum((2, 3))
            apart.fill_diagonal_(1e3)
            assert apart.min() > 1


def test_a_font_without_the_character_is_refused() -> None:
    with pytest.raises(InputError, match="cmr10 has no glyph of 'б'"):
        masters(("cmr10",), "б")
