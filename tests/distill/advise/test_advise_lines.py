"""The lines that are printed make a valid recipe of any recipe that was raced."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from made_advice import BASE, BETTER, advice
from planted_jobs import job

import opdf_compile as opdf
from opdf_compile.distill.advise.entrants import PROPOSED, Entrant, entrants
from opdf_compile.distill.advise.sentences import recipe_lines
from opdf_compile.distill.recipe import parse_recipe
from opdf_compile.errors import InputError

HEAD = """\
[student]
model = "a:b"
{student}
[teacher]
model = "a:c"
[data]
source = "digits"
[[loss]]
kind = "hinton"
[training]
steps = 10
"""
RECIPES = {
    "usual": ("", "[plan]\ncores = 3\n[optimizer]\nlr = 0.1\n"),
    "plain": ("", "[plan]\nenabled = false\n[optimizer]\nlr = 0.1\n"),
    "sized": ("", '[plan]\nscale = 1.5\nexclude = ["head.*"]\n[optimizer]\nlr = 0.1\n'),
    "svd": ("", '[plan]\nparametrization = "svd"\n[optimizer]\nlr = 0.1\n'),
    "cores decay": (
        "",
        '[plan]\ncores = 3\n[optimizer]\nlr = 0.1\ndecay = "cores"\nweight_decay = 0.1\n',
    ),
    "no decay": ("", '[plan]\ncores = 3\n[optimizer]\nname = "Rprop"\nlr = 0.1\n'),
    "aligned": ('layer_map = "found"', "[alignment]\nweight = 1.0\n[optimizer]\nlr = 0.1\n"),
    "warm": (
        'layer_map = "found"\nwarm_start = true',
        '[alignment]\nweight = 1.0\n[optimizer]\nlr = 0.1\ndecay = "cores"\n',
    ),
}


def raced(text: str) -> tuple[Entrant, ...]:
    given = job("hurts", 0)
    recipe = parse_recipe(text)
    # Globs of another student would fit no weight of this one.
    plan = recipe.plan.model_copy(update={"exclude": []})
    aligned = (lambda: None) if recipe.alignment else None
    asked = recipe.model_copy(update={"plan": plan})
    return entrants(replace(given, recipe=asked, alignment=aligned))


def pasted(text: str, lines: str) -> str:
    """What a user does with the lines, as they say it."""
    tree, more = tomllib.loads(text), tomllib.loads(lines)
    if "plan" in more:
        tree["plan"] = more["plan"]
    tree["optimizer"] |= more["optimizer"]
    for line in lines.splitlines():
        if line.startswith("# Remove "):
            remove(tree, line.removeprefix("# Remove ").removesuffix("."))
    return "".join(section(name, value) for name, value in tree.items())


def remove(tree: dict[str, Any], what: str) -> None:
    if what.startswith("["):
        del tree[what.strip("[]")]
        return
    key, _, place = what.partition(" in ")
    del tree[place.strip("[]")][key]


def section(name: str, value: Any) -> str:
    if isinstance(value, list):
        return "".join(section(f"[{name}]", entry) for entry in value)
    keys = (
        f"{key} = {str(v).lower() if v in (True, False) else repr(v)}" for key, v in value.items()
    )
    return f"[{name}]\n" + "\n".join(keys) + "\n"


@pytest.mark.parametrize("name", RECIPES)
def test_advice_can_be_pasted_into_the_recipe(name: str) -> None:
    student, rest = RECIPES[name]
    text = HEAD.format(student=student) + rest
    parse_recipe(text)
    plain, *over = raced(text)
    for method in over:
        for use in (True, False):
            found = advice(BASE, BETTER) if use else advice(BETTER, BASE)
            # A race gives an optimizer without weight decay no other.
            decay = 0.0 if name == "no decay" else 0.01
            parts = {"lines": method.lines, "without": method.without, "weight_decay": decay}
            found = replace(
                found,
                over=replace(found.over, **parts),
                plain=replace(
                    found.plain, lines=plain.lines, without=plain.without, weight_decay=decay
                ),
            )
            read = parse_recipe(pasted(text, recipe_lines(found)))
            assert read.plan.enabled == use
            assert read.optimizer.lr == found.over.lr
            if use and method.lines:
                asked = method.lines["parametrization"]
                assert (read.plan.parametrization, read.alignment) == (asked, None)
            if use and not method.lines:
                assert read.plan == parse_recipe(text).plan


def test_lines_say_what_has_to_go() -> None:
    student, rest = RECIPES["warm"]
    plain, *over = raced(HEAD.format(student=student) + rest)
    assert plain.without == ("[alignment]", "decay in [optimizer]")
    assert over[0].without == ("[alignment]",)
    assert (over[-1].name, over[-1].aligned) == ("the recipe's plan, aligned", True)
    assert over[-1].without == ()
    student, rest = RECIPES["aligned"]
    plain, *_ = raced(HEAD.format(student=student) + rest)
    assert plain.without == ("[alignment]", "layer_map in [student]")


def test_the_default_plan_races_where_the_recipe_asks_for_nothing() -> None:
    given = job("hurts", 0)
    nothing = given.recipe.model_copy(update={"plan": type(given.recipe.plan)()})

    def names(plan: Callable[[Any], Any]) -> list[str]:
        return [one.name for one in entrants(replace(given, recipe=nothing, plan=plan))]

    proposed = ["plain", "md", "hyperball"]
    assert names(lambda model: opdf.plan(model, parametrization="md")) == proposed
    assert names(lambda model: opdf.plan(model, cores=4)) == [*proposed, "the recipe's plan"]


def test_a_default_plan_that_is_aligned_races_only_so() -> None:
    given = job("hurts", 0)
    nothing = given.recipe.model_copy(update={"plan": type(given.recipe.plan)()})
    pulled: Any = object()
    aligned = replace(
        given, recipe=nothing, alignment=pulled, plan=lambda model: opdf.plan(model, cores=4)
    )
    assert [one.name for one in entrants(aligned)] == [
        "plain", "md", "hyperball", "the recipe's plan, aligned"
    ]  # fmt: skip


def test_methods_keep_the_recipes_globs() -> None:
    given = job("hurts", 0)
    plan = given.recipe.plan.model_copy(update={"include": ["weight"]})
    made = entrants(replace(given, recipe=given.recipe.model_copy(update={"plan": plan})))
    # The recipe's plan needs no lines.
    assert [method.lines.get("include") for method in made] == [None, ["weight"], ["weight"], None]


def test_what_the_optimizer_does_not_take_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    given = job("hurts", 0)

    def choosy(model: Any, plan: opdf.Plan | None, **options: float) -> Any:
        if plan is not None and plan.entries[0].parametrization != "mpo":
            raise InputError("needs a rate that it can read")
        return given.optimizer(model, plan, **options)

    made = entrants(replace(given, optimizer=choosy))
    assert [one.name for one in made] == ["plain", "the recipe's plan"]
    told = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert told == [f"{m} does not race: needs a rate that it can read" for m in PROPOSED]
    plain_only = given.recipe.plan.model_copy(update={"enabled": False})
    recipe = given.recipe.model_copy(update={"plan": plain_only})
    with pytest.raises(InputError, match="a rate that it can read"):
        entrants(replace(given, recipe=recipe, optimizer=choosy))


def test_without_its_alignment_a_recipe_has_the_plan_that_it_would_have() -> None:
    given = job("hurts", 0)
    pulled: Any = object()
    joint = replace(given, alignment=pulled, plan=lambda model: opdf.plan(model, cores=4))
    *_, apart, aligned = entrants(joint)
    assert (apart.aligned, aligned.aligned) == (False, True)
    # The recipe asks for two cores; what fits student and teacher is aligned only.
    student = given.make_student(0)
    assert apart.plan and apart.plan.entries == opdf.plan(student, cores=2).entries
    assert aligned.plan and aligned.plan.entries == opdf.plan(student, cores=4).entries
