"""A recipe whose student starts from a zoo."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from opdf_compile.distill.recipe import Job
from opdf_compile.distill.run import run
from opdf_compile.distill.run.events import Stepped
from opdf_compile.distill.zoo import add_to_zoo, data_features, starting
from opdf_compile.distill.zoo.checkpoints import vector_of
from opdf_compile.distill.zoo.generator import Training
from opdf_compile.errors import RecipeError

Make = Callable[..., Job]


def filled(make: Make, folder: Path, count: int = 4) -> None:
    """A zoo of the recipe's own students, whose data are parts of the recipe's."""
    job = make(student="student")
    train = [job.data.train[row] for row in range(len(job.data.train))]
    x, y = (torch.stack([row[name] for row in train]) for name in ("x", "labels"))
    for place in range(count):
        part = slice(place * 8, place * 8 + 16)
        features = data_features(x[part], y[part], 4)
        add_to_zoo(folder / "zoo", f"s{place}", job.make_student(place), features)


def given(kind: str) -> dict[str, str]:
    """The recipe's student with a start from the zoo."""
    return {"student": f'student"\\ninit = {{kind = "{kind}", zoo = "zoo"}} #'}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A generator that is trained for a moment."""
    whole = starting.trained_generator
    short = Training(codes=4, autoencoder=10, diffusion=10)
    monkeypatch.setattr(starting, "trained_generator", lambda zoo: whole(zoo, training=short))


def test_the_mean_is_where_it_starts(make: Make, tmp_path: Path) -> None:
    filled(make, tmp_path)
    students = [make(student="student").make_student(place) for place in range(4)]
    wanted = torch.stack([vector_of(one.state_dict()) for one in students]).mean(0)
    for seed in (0, 1):
        found = vector_of(make(**given("mean")).make_student(seed).state_dict())
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


def test_a_seed_draws_its_own_student(quick: None, make: Make, tmp_path: Path) -> None:
    filled(make, tmp_path)
    job = make(**given("sampled"))
    first, second, again = (
        vector_of(one.state_dict())
        for one in (
            job.make_student(0),
            job.make_student(1),
            make(**given("sampled")).make_student(0),
        )
    )
    assert torch.equal(first, again) and not torch.equal(first, second)


class Killed(BaseException):
    """Ends a run where it is raised."""


def test_a_killed_run_goes_on_from_the_same_start(
    quick: None, make: Make, tmp_path: Path, outcome: Callable[[Path], dict[str, Any]]
) -> None:
    filled(make, tmp_path)
    values = {**given("sampled"), "training": "epochs = 2\\ncheckpoint_every = 3"}

    def dies(event: object) -> None:
        if isinstance(event, Stepped) and event.step == 4:
            raise Killed

    run(make(**values), tmp_path / "whole")
    with pytest.raises(Killed):
        run(make(**values), tmp_path / "parts", watch=dies)
    run(make(**values), tmp_path / "parts")
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")


def test_a_zoo_that_is_not_there(make: Make) -> None:
    with pytest.raises(RecipeError, match=r"recipe.toml:4: the zoo .* is no folder"):
        make(**given("nearest")).make_student(0)
