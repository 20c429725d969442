"""Advice from two columns of scores, as a race would have given it."""

from __future__ import annotations

from opdf_compile.distill.advise.advice import Advice, Side
from opdf_compile.distill.advise.significance import paired


def side(method: str, scores: list[float | None], *, at_edge: bool = False) -> Side:
    enabled = method != "plain"
    return Side(
        method=method,
        lines={"enabled": enabled},
        without=(),
        lr=2e-5,
        weight_decay=0.01,
        at_edge=at_edge,
        tried=(),
        tuning_runs=10,
        tuning_seconds=10.0,
        final_seconds=40.0,
        final_steps=100,
        step_seconds=0.01,
        setup_seconds=0.0,
        scores=tuple(scores),
    )


def advice(plain: list[float | None], over: list[float | None]) -> Advice:
    both = [o - p for o, p in zip(over, plain, strict=True) if o is not None and p is not None]
    return Advice(
        plain=side("plain", plain),
        over=side("md", over),
        comparison=paired(both) if both else None,
        seeds=tuple(range(len(plain))),
        metric="accuracy",
        higher_is_better=True,
        whole=100,
        budget=120.0,
        seconds=110.0,
        spent=0.0,
        most_pairs=30,
        scored=20,
        mixed=True,
    )


BASE = [0.80, 0.81, 0.79, 0.80, 0.82, 0.78, 0.80, 0.81]
BETTER = [0.84, 0.86, 0.83, 0.85, 0.86, 0.83, 0.84, 0.85]
LIKE = [0.81, 0.80, 0.80, 0.79, 0.83, 0.77, 0.81, 0.80]
