"""The digits: three parts that do not overlap, each class in the same proportion."""

from __future__ import annotations

import sys

import pytest
import torch

from opdf_compile.distill.digits import load_digits, stratified
from opdf_compile.errors import UserError


def test_every_image_is_in_exactly_one_part() -> None:
    labels = torch.arange(10).repeat(50)
    parts = stratified(labels, seed=3)
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(500))


def test_every_class_has_the_same_share_in_every_part() -> None:
    digits = load_digits()
    assert digits.sizes() == {"train": 898, "validation": 270, "test": 629}
    counts = torch.stack([torch.bincount(s.labels) for s in (digits.train, digits.test)]).double()
    shares = counts / counts.sum(1, keepdim=True)
    assert (shares[0] - shares[1]).abs().max() < 0.005


def test_the_split_depends_on_the_seed_alone() -> None:
    state = torch.random.get_rng_state()
    first = load_digits(0)
    torch.manual_seed(99)
    second, other = load_digits(0), load_digits(1)
    assert torch.equal(first.test.images, second.test.images)
    assert not torch.equal(first.test.images, other.test.images)
    torch.manual_seed(0)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_images_are_pixels_from_zero_to_one() -> None:
    images = load_digits().train.images
    assert images.shape[1:] == (1, 8, 8)
    assert images.dtype is torch.float32
    assert (float(images.min()), float(images.max())) == (0.0, 1.0)


def test_without_scikit_learn_one_sentence_names_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match=r"pip install 'opdf-compile\[demo\]'") as caught:
        load_digits()
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
