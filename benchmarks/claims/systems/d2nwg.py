"""D2NWG, arXiv 2402.18153: start weights that are drawn for a data set, against plainer starts.

A zoo of small networks, each trained on five of the ten digits under the labels 0 to 4, all from
one random start (from many, no code of so few students would fit them). Data sets that no student
of the zoo has seen are other choices of five; the start is measured as it is, and after 10 and 50
steps of training.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from claims.claim import Claim, Finding, System, paired
from opdf_compile.distill.recipe import load_digits
from opdf_compile.distill.zoo import (
    add_to_zoo,
    data_features,
    read_zoo,
    sample,
    trained_generator,
    zoo_start,
)

CLASSES, STEPS, RATE, BATCH = 5, 150, 0.05, 32
ZOO, HELD_OUT = {True: 60, False: 300}, {True: 6, False: 24}
_CHOICES = 252  # Of five among ten; each in as many orders of the labels as are wanted.
AFTER = (0, 10, 50)
STARTS = ("sampled", "nearest", "mean", "random")


class Digits(NamedTuple):
    """Images of five classes, with their labels numbered anew."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def network() -> nn.Module:
    """2,245 parameters, from one start for all."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, CLASSES))


def subsets(count: int, held_out: int) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Choices of five digits in an order: those of the zoo, and those that it has not seen.

    No choice of the second has its five digits, in any order, in the first.
    """
    rng = np.random.default_rng(0)
    choices = list(combinations(range(10), CLASSES))
    places = rng.permutation(_CHOICES)
    apart = [choices[place] for place in places[:held_out]]
    known = [choices[place] for place in places[held_out:]]
    zoo = [known[place % len(known)] for place in range(count)]
    ordered = [tuple(int(one) for one in rng.permutation(choice)) for choice in zoo]
    return ordered, [tuple(int(one) for one in rng.permutation(choice)) for choice in apart]


def digits(choice: tuple[int, ...]) -> Digits:
    """The digits of a choice; label k is the k-th of them."""
    found = []
    for name in ("train", "test"):
        part = load_digits()[name]
        rows = [part[place] for place in range(len(part))]
        images, labels = (torch.stack([row[key] for row in rows]) for key in ("images", "labels"))
        where = torch.full((10,), -1)
        where[list(choice)] = torch.arange(CLASSES)
        numbered = where[labels]
        found.append((images[numbered >= 0], numbered[numbered >= 0]))
    return Digits(found[0], found[1])


def train(model: nn.Module, data: Digits, steps: int, seed: int) -> None:
    """Plain gradient descent with momentum."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)
    images, labels = data.train
    for _ in range(steps):
        chosen = torch.randint(len(images), (BATCH,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(images[chosen]), labels[chosen]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module, data: Digits) -> float:
    """On the test images, in points."""
    images, labels = data.test
    return 100 * float((model(images).argmax(1) == labels).double().mean())


def _claim(steps: int, rival: str) -> Claim:
    names = {"nearest": "the nearest student of the zoo", "mean": "the zoo's mean"}
    return Claim(
        system="D2NWG",
        source="arXiv 2402.18153",
        says=f"A drawn start is better than {names[rival]}, {steps} steps on.",
        task="five digits of ten that the zoo has not seen together",
        method="drawn by diffusion, given features of the data",
        baseline=names[rival],
        equal="steps",
        unit="points of test accuracy",
    )


def _filled(
    folder: Path, choices: Sequence[tuple[int, ...]], told: Callable[[str, float], None]
) -> None:
    for place, choice in enumerate(choices):
        told(f"student {place + 1} of the zoo", 0.7 * place / len(choices))
        model, data = network(), digits(choice)
        train(model, data, STEPS, place)
        add_to_zoo(folder, f"{place:03}", model, data_features(*data.train, CLASSES))


def measure(small: bool, told: Callable[[str, float], None]) -> Sequence[Finding]:
    """Drawn starts against the nearest student and the mean, paired by data set."""
    known, apart = subsets(ZOO[small], HELD_OUT[small])
    scores: dict[tuple[str, int], list[float]] = {(s, n): [] for s in STARTS for n in AFTER}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _filled(folder, known, told)
        generator = trained_generator(read_zoo(folder, network()))
        for place, choice in enumerate(apart):
            told(f"data set {place + 1}", 0.7 + 0.3 * place / len(apart))
            data = digits(choice)
            features = data_features(*data.train, CLASSES)
            for start in STARTS:
                for steps in AFTER:
                    model = network()
                    if start == "sampled":
                        _load(model, sample(generator, features, place))
                    elif start == "nearest":
                        model.load_state_dict(zoo_start("nearest", folder, model, features))
                    elif start == "mean":
                        model.load_state_dict(zoo_start("mean", folder, model, features))
                    train(model, data, steps, 10_000 + place)
                    scores[start, steps].append(accuracy(model, data))
    return [_finding(steps, rival, scores) for steps in AFTER for rival in ("nearest", "mean")]


def _load(model: nn.Module, vector: Tensor) -> None:
    from opdf_compile.distill.zoo.checkpoints import state_of

    model.load_state_dict(state_of(vector, model.state_dict()))


def _finding(steps: int, rival: str, scores: dict[tuple[str, int], list[float]]) -> Finding:
    means = {start: float(np.mean(scores[start, steps])) for start in STARTS}
    told = ", ".join(f"{start} {mean:.1f}" for start, mean in means.items())
    return paired(
        _claim(steps, rival), scores["sampled", steps], scores[rival, steps], f"Accuracies: {told}."
    )


SYSTEM = System("d2nwg", measure)
