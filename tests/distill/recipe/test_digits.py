"""The digits: three parts that do not overlap, each class in the same proportion."""

from __future__ import annotations

import sys

import pytest
import torch

from opdf_compile.distill.recipe.digits import load_digits
from opdf_compile.distill.recipe.examples import Table, fingerprint, split_off
from opdf_compile.errors import UserError


def part(name: str, seed: int = 0) -> Table:
    found = load_digits(seed)[name]
    assert isinstance(found, Table)
    return found


def test_every_example_is_in_exactly_one_part() -> None:
    whole = Table({"labels": torch.arange(10).repeat(50), "number": torch.arange(500)})
    parts = split_off(whole, {"train": 0.5, "validation": 0.15}, "labels", 3, rest="test")
    assert list(parts) == ["test", "train", "validation"]
    numbers = [
        row["number"] for part in parts.values() for row in map(part.__getitem__, range(len(part)))
    ]
    assert sorted(map(int, numbers)) == list(range(500))


def test_every_class_has_the_same_share_in_every_part() -> None:
    sizes = {name: len(found) for name, found in load_digits().items()}
    assert sizes == {"train": 898, "validation": 270, "test": 629}
    labels = [part(name).columns["labels"] for name in ("train", "test")]
    counts = torch.stack([torch.bincount(of) for of in labels]).double()
    shares = counts / counts.sum(1, keepdim=True)
    assert (shares[0] - shares[1]).abs().max() < 0.005


def test_the_parts_are_those_of_earlier_versions() -> None:
    """Accuracies on the test part mean the same images, whatever was chosen on the others."""
    assert (
        fingerprint(load_digits())
        == "bf87e56dbbc1a5aaf40b3e55fb92827dbb9739746e88541bc9627837612bec6b"
    )


def test_the_split_depends_on_the_seed_alone() -> None:
    state = torch.random.get_rng_state()
    first = part("test").columns["images"]
    torch.manual_seed(99)
    assert torch.equal(first, part("test").columns["images"])
    assert not torch.equal(first, part("test", seed=1).columns["images"])
    torch.manual_seed(0)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_images_are_pixels_from_zero_to_one() -> None:
    images = part("train").columns["images"]
    assert images.shape[1:] == (1, 8, 8)
    assert images.dtype is torch.float32
    assert (float(images.min()), float(images.max())) == (0.0, 1.0)


def test_without_scikit_learn_one_sentence_names_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match="pip install 'scikit-learn>=") as caught:
        load_digits()
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
