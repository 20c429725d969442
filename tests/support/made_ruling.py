"""Rulings from columns of scores, as a contest would have given them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from made_advice import side

from opdf_compile.distill.advise.contest.ruling import Basis, Bout, Ruling, Standing
from opdf_compile.distill.advise.significance import Duel

Scores = Sequence[float | None]


def bout(ours: Scores, plain: Scores, *, plain_steps: int = 100) -> Bout:
    return Bout(Duel(tuple(ours), tuple(plain), True), 100, plain_steps, 1.0)


def standing(
    name: str, ours: Scores, plain: Mapping[Basis, Scores], *, times: float = 1.0, **more: Any
) -> Standing:
    """A contender against the plain scores at equal steps, equal time, or both."""
    bouts: dict[Basis, Bout] = {b: bout(ours, scores) for b, scores in plain.items()}
    return Standing(side(name, list(ours)), times, 1.5, bouts, **more)


def ruling(plain: Scores, longer: Scores, *contenders: Standing, **more: Any) -> Ruling:
    """Of a plain student, the same with twice the steps, and contenders."""
    twice = standing("plain@2x", longer, {"steps": plain}, times=2.0)
    twice = replace(twice, side=replace(twice.side, lines={"enabled": False}))
    return Ruling(
        plain=side("plain", list(plain)),
        contenders=contenders,
        longer=(twice,),
        seeds=tuple(range(1000, 1000 + len(plain))),
        metric="accuracy",
        higher_is_better=True,
        whole=100,
        budget=120.0,
        seconds=110.0,
        spent=0.0,
        most_sets=30,
        scored=20,
        mixed=True,
        **more,
    )
