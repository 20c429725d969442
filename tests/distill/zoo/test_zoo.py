"""A zoo on the disk, the features of data, and the starts that are made of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from opdf_compile.distill.zoo import (
    Zoo,
    add_to_zoo,
    data_features,
    read_zoo,
    sample,
    trained_generator,
    zoo_start,
)
from opdf_compile.distill.zoo.checkpoints import state_of, vector_of
from opdf_compile.distill.zoo.generator import Training
from opdf_compile.errors import ArtefactError, InputError, UserError


def student(width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 2))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three students whose features are 0, 1 and 5."""
    for place, number in enumerate((0.0, 1.0, 5.0)):
        torch.manual_seed(place)
        add_to_zoo(
            tmp_path / "zoo", f"s{place}", student(), torch.tensor([number, number]).double()
        )
    return tmp_path / "zoo"


def test_weights_come_back_as_they_were() -> None:
    """Every floating-point tensor, bit for bit; counts of batches are left out."""
    torch.manual_seed(0)
    model = student().half()
    state = model.state_dict()
    found = state_of(vector_of(state), state)
    assert set(state) - set(found) == {"1.num_batches_tracked"}
    assert all(torch.equal(found[name], state[name]) for name in found)
    assert {tensor.dtype for tensor in found.values()} == {torch.float16}


def test_features_are_means_of_labels_and_their_shares() -> None:
    """The oracle projects by hand; a label that does not occur is zeros."""
    inputs = torch.randn(5, 2, 3).double()
    labels = torch.tensor([0, 2, 0, 2, 2])
    projection = torch.randn(
        6, 4, generator=torch.Generator().manual_seed(2402), dtype=torch.float64
    )
    rows = inputs.flatten(1) @ projection / 6**0.5
    found = data_features(inputs, labels, 3, width=4).view(3, 5)
    torch.testing.assert_close(found[0, :4], (rows[0] + rows[2]) / 2)
    torch.testing.assert_close(found[2, :4], (rows[1] + rows[3] + rows[4]) / 3)
    assert found[1].tolist() == [0.0] * 5
    assert found[:, 4].tolist() == pytest.approx([0.4, 0.0, 0.6])


def test_the_controls_are_the_nearest_and_the_mean(folder: Path) -> None:
    zoo = read_zoo(folder, student())
    near = zoo_start("nearest", folder, student(), torch.tensor([1.4, 1.1]).double())
    torch.testing.assert_close(vector_of(near), zoo.vectors[1], rtol=0, atol=0)
    mean = zoo_start("mean", folder, student(), torch.zeros(2).double())
    wanted = (zoo.vectors[0] + zoo.vectors[1] + zoo.vectors[2]) / 3
    torch.testing.assert_close(vector_of(mean), wanted, rtol=1e-6, atol=1e-6)


def clusters(count: int, dimension: int = 40) -> tuple[Zoo, Tensor]:
    """Students near one of two points, told apart by a feature."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(2, dimension, generator=generator, dtype=torch.float64)
    which = torch.arange(count) % 2
    noise = torch.randn(count, dimension, generator=generator, dtype=torch.float64)
    vectors = points[which] + 0.1 * noise
    names = tuple(str(place) for place in range(count))
    return Zoo(names, vectors, which.double()[:, None]), points


def test_what_is_drawn_is_what_the_features_ask_for() -> None:
    """Near the point of its feature: by less than half of the way to the other one."""
    zoo, points = clusters(120)
    generator = trained_generator(zoo, training=Training(codes=8, autoencoder=400, diffusion=800))
    for label in (0, 1):
        features = torch.tensor([float(label)]).double()
        for seed in range(5):
            drawn = sample(generator, features, seed)
            own, other = ((drawn - point).norm() for point in (points[label], points[1 - label]))
            assert float(own) < 0.5 * float(other)


def test_the_seed_decides_and_nothing_else() -> None:
    zoo, _ = clusters(20)
    short = Training(codes=4, autoencoder=20, diffusion=20)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    made = [trained_generator(zoo, training=short) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), before)
    features = torch.zeros(1).double()
    first, again, other = (
        sample(made[0], features, 1),
        sample(made[1], features, 1),
        sample(made[0], features, 2),
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_codes_have_gradients_by_finite_differences() -> None:
    """Of the two losses that the generator learns by, in float64."""
    zoo, _ = clusters(6, dimension=5)
    short = Training(codes=3, autoencoder=2, diffusion=2)
    made = trained_generator(zoo, training=short)
    made.encoder.double()
    made.decoder.double()
    made.denoiser.double()
    rows = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x: made.decoder(made.encoder(x)).square().mean(), (rows,)
    )
    codes = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    times, given = torch.rand(4).double(), torch.randn(4, 1).double()
    assert torch.autograd.gradcheck(
        lambda z: made.denoiser(z, times, given).square().mean(), (codes,)
    )


def broken(folder: Path, how: str) -> Path:
    if how == "gone":
        return folder / "nothing"
    if how == "alone":
        for file in list(folder.glob("s[12].*")):
            file.unlink()
    if how == "another":
        add_to_zoo(folder, "s3", student(width=5), torch.zeros(2).double())
    if how == "nan":
        model = student()
        nn.init.constant_(model[0].bias, float("nan"))
        add_to_zoo(folder, "s3", model, torch.zeros(2).double())
    if how == "untold":
        (folder / "s1.json").unlink()
    if how == "odd":
        (folder / "s1.json").write_text(json.dumps({"features": ["many"]}))
    if how == "unequal":
        add_to_zoo(folder, "s3", student(), torch.zeros(3).double())
    return folder


@pytest.mark.parametrize(
    ("how", "kind", "sentence"),
    [
        ("gone", ArtefactError, "is no folder, wanted one with NAME.safetensors"),
        ("alone", InputError, "holds 1 students, wanted 2 at least"),
        (
            "another",
            InputError,
            r"s3.safetensors is no student .* 0.bias is \(5,\) there and \(4,\)",
        ),
        ("nan", InputError, "s3.safetensors holds numbers that are none"),
        ("untold", ArtefactError, "s1.json does not tell what the student beside it learned"),
        ("odd", ArtefactError, "s1.json does not tell"),
        ("unequal", InputError, r"have \[2, 3\] features, wanted as many"),
        ("good", InputError, "has 2 features .* and 4 are given"),
    ],
)
def test_a_zoo_that_is_none(how: str, kind: type[UserError], sentence: str, folder: Path) -> None:
    with pytest.raises(kind, match=sentence):
        zoo_start("mean", broken(folder, how), student(), torch.zeros(4).double())


@pytest.mark.parametrize(
    ("inputs", "labels", "sentence"),
    [
        (torch.ones(2, 3).long(), [0, 1], "inputs of torch.int64"),
        (torch.ones(0, 3), [], "with 0 rows"),
        (torch.ones(2, 3), [0, 2], "go from 0 to 2 and there are 2"),
        (torch.ones(2, 3), [-100, 1], "go from -100 to 1"),
    ],
)
def test_data_without_features(inputs: Tensor, labels: list[int], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        data_features(inputs, torch.tensor(labels), 2)


def test_a_drawn_variance_is_none_below_the_zoos_least() -> None:
    """Of two clusters far apart, drawn by a generator that has hardly learned: some would be."""
    zoo, _ = clusters(20)
    which = torch.arange(zoo.vectors.shape[1]) < 20
    short = Training(codes=4, autoencoder=20, diffusion=20)
    free = trained_generator(zoo, training=short)
    bound = trained_generator(Zoo(zoo.names, zoo.vectors, zoo.features, which), training=short)
    noise, features = 5 * torch.randn(50, 4), torch.zeros(1).double()
    least = zoo.vectors.amin(0)
    assert bool((free(features, noise) < least)[:, which].any())
    assert not bool((bound(features, noise) < least)[:, which].any())
