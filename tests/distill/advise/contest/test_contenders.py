"""What contenders may be called, and what each becomes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from planted_jobs import job
from torch import nn

import opdf_compile as opdf
from opdf_compile.distill.advise import referee
from opdf_compile.distill.advise.contest.contenders import (
    Contender,
    Resolver,
    longer_plain,
    parse_contenders,
)
from opdf_compile.distill.recipe import Job
from opdf_compile.distill.recipe.muon_adamw import MuonAdamW
from opdf_compile.errors import InputError


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("plain,gains", [Contender("gains", "gains")]),
        (" muon , mpo ", [Contender("muon", "plain", "muon"), Contender("mpo", "mpo")]),
        ("gains+muon", [Contender("gains+muon", "gains", "muon")]),
        ("plain+sgd", [Contender("sgd", "plain", "sgd")]),
        ("recipe@1.5x", [Contender("recipe@1.5x", "recipe", None, 1.5)]),
        ("plain@3x", [Contender("plain@3x", "plain", None, 3.0)]),
        (
            "mpo(cores=2, a=1)@2x,gains",
            [
                Contender("mpo(cores=2, a=1)@2x", "mpo(cores=2, a=1)", None, 2.0),
                Contender("gains", "gains"),
            ],
        ),
    ],
)
def test_names_are_read(text: str, found: list[Contender]) -> None:
    assert list(parse_contenders(text)) == found


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("gain", r"contender 'gain' is not known \(did you mean 'gains'\?\), wanted some of plain"),
        ("gains+adam", r"'adam' is not known \(did you mean 'adamw'\?\)"),
        ("gains,gains", "gains stands twice in 'gains,gains', wanted each once"),
        ("plain", "at least one beside plain; name some, such as --contenders"),
        ("", "at least one beside plain"),
        ("gains+mpo", "joins gains and mpo, wanted at most one parametrization"),
        ("sgd+muon", "joins sgd and muon, wanted at most one parametrization and one optimizer"),
        ("plain@0.5x", "has 0.5 times the steps, wanted a number above 0, and above 1 for plain"),
        ("gains@0x", "has 0 times the steps"),
        ("gains@twice", "'gains@twice' is not known"),
    ],
)
def test_what_cannot_be_read_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        parse_contenders(text)


def test_twice_the_steps_always_race_and_once_only() -> None:
    for text in ("gains", "gains,plain@2x"):
        assert [c.name for c in longer_plain(parse_contenders(text))] == ["plain@2x"]
    more = longer_plain(parse_contenders("gains,plain@4x"))
    assert [(c.name, c.times) for c in more] == [("plain@2x", 2.0), ("plain@4x", 4.0)]


@pytest.fixture(scope="module")
def given() -> Job:
    return job("hurts", 0)


def test_a_parametrization_becomes_a_plan_with_the_recipes_optimizer(given: Job) -> None:
    made = Resolver(given).entrant(Contender("gains", "gains"))
    assert made.plan is not None
    assert [entry.parametrization for entry in made.plan.entries] == ["gains"]
    assert made.lines == {"enabled": True, "parametrization": "gains"}
    assert made.optimizer is None


def test_an_optimizer_becomes_a_section_and_what_it_makes(given: Job) -> None:
    resolver = Resolver(given)
    made, student = resolver.entrant(Contender("muon", "plain", "muon")), given.make_student(0)
    assert made.plan is None and made.optimizer is not None
    assert isinstance(made.optimizer(student, None, lr=0.1, weight_decay=0.2), MuonAdamW)
    section = resolver.section(Contender("sgd", "plain", "sgd"))
    assert section is given.recipe.optimizer  # Which is SGD already.
    other = resolver.section(Contender("adamw", "plain", "adamw"))
    assert (other.name, other.lr, other.weight_decay) == ("AdamW", 1e-3, 0.0)


def test_both_make_an_overparam_of_that_optimizer(given: Job) -> None:
    made, student = Resolver(given).entrant(Contender("g", "gains", "muon")), given.make_student(0)
    assert made.plan is not None and made.optimizer is not None
    optimizer = made.optimizer(student, made.plan.made_for(student), lr=0.1)
    assert isinstance(optimizer, opdf.Overparam)
    assert isinstance(optimizer.inner, MuonAdamW)


def test_the_recipes_plan_is_a_contender(given: Job) -> None:
    made = Resolver(given).entrant(Contender("recipe", "recipe"))
    assert made.plan is not None and made.lines == {}
    assert not made.aligned
    aligned = Resolver(replace(given, alignment=lambda: None))  # type: ignore[arg-type, return-value]
    assert aligned.entrant(Contender("recipe", "recipe")).aligned


class Blocks(nn.Module):
    """A convolution with a batch norm, over the rows as pictures of one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = self.norm(self.conv(x.view(-1, 1, 8, 8))).relu()
        found: torch.Tensor = self.head(maps.mean((2, 3)))
        return found


def test_branches_are_planned_where_both_phases_have_the_site(given: Job) -> None:
    blocks = replace(given, make_student=lambda _seed: Blocks())
    made = Resolver(blocks).entrant(parse_contenders("repvgg(start=published)")[0])
    assert made.plan is not None and not made.plan.entries
    assert [site.key for site in made.plan.sites] == ["conv.weight"]
    assert made.lines["parametrization"] == "repvgg(start=published)"
    with pytest.raises(InputError, match=r"the contender repvgg: "):
        Resolver(given).entrant(Contender("repvgg", "repvgg"))


@pytest.mark.slow
def test_a_student_with_branches_races_and_is_folded_for_int8(given: Job) -> None:
    def optimizer(model: nn.Module, _plan: Any, **options: float) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), **options)

    blocks = replace(given, make_student=lambda _seed: Blocks().train(), optimizer=optimizer)
    recipe = blocks.recipe.model_copy(
        update={"training": blocks.recipe.training.model_copy(update={"steps": 20})}
    )
    ruling = referee(
        replace(blocks, recipe=recipe),
        "repvgg,repvgg+muon",
        after="int8",
        budget_seconds=240,
        most_pairs=2,
    )
    for standing in ruling.contenders:
        assert standing.cost > 1.0
        assert standing.int8 is not None
        # The folded student scores as the one with branches did.
        assert standing.int8.before == pytest.approx(standing.side.scores, rel=1e-4)


def test_what_is_plain_already_is_refused(given: Job) -> None:
    with pytest.raises(InputError, match="sgd is the recipe's own optimizer SGD"):
        Resolver(given).entrant(Contender("sgd", "plain", "sgd"))
    # With more steps it is what plain with more steps is, and together with gains it is gains.
    assert Resolver(given).entrant(Contender("g", "gains", "sgd")).optimizer is None


def test_a_recipe_without_a_plan_has_no_contender_of_its_own(given: Job) -> None:
    with pytest.raises(InputError, match=r"contender recipe is the recipe's \[plan\], which has"):
        Resolver(replace(given, plan=lambda _model: None)).entrant(Contender("recipe", "recipe"))


def test_a_plan_that_no_weight_fits_names_its_contender(given: Job) -> None:
    with pytest.raises(InputError, match="the contender do_conv: "):
        Resolver(given).entrant(Contender("do_conv", "do_conv"))
