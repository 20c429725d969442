"""The experiment of OKD: what tells the two sides apart, and how large the networks are."""

from __future__ import annotations

from claims.systems.distillm_task import teacher
from claims.systems.okd import ONLINE, RECIPE, Bench, Size, student

from opdf_compile.distill.recipe import parse_recipe


def test_the_sides_differ_in_the_modules_alone() -> None:
    sides = [
        parse_recipe(RECIPE.format(online=online, rate=0.01, steps=5)).model_dump()
        for online in (ONLINE, "")
    ]
    assert [side.pop("online") is None for side in sides] == [False, True]
    assert sides[0] == sides[1]


def test_the_teacher_is_more_than_twenty_times_as_large() -> None:
    sizes = [sum(p.numel() for p in model.parameters()) for model in (teacher(), student())]
    assert 20 < sizes[0] / sizes[1] < 30


def test_a_seed_is_a_student_and_both_sides_learn() -> None:
    """The same seed comes to the same divergence; twenty steps are better than one."""
    bench = Bench(Size(teacher=2, steps=2, seeds=1, rates=(3e-3,), sequences=16))
    first, again, longer = (
        bench.run(online, 3e-3, steps, 0)[0]
        for online, steps in ((False, 1), (False, 1), (False, 20))
    )
    assert first == again and longer < first
    assert bench.run(True, 3e-3, 20, 0)[0] < first
