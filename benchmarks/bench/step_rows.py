"""What the races of training_step.py say: rows for programs, tables for people."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np

from bench.floor import floor_ratio
from bench.forms import KNOWN
from bench.intervals import median_interval, paired
from bench.race import Times
from bench.reporting import finite, number, row, span, table
from opdf_compile.planning.plans import Plan

COMPOSE, CORES, WEIGHTS = "compose at GEMM rate", "pass over cores", "pass over weights"


def against(form: str) -> str:
    """What a race calls a form of the other build."""
    return f"{form}, other build"


def floors(times: Times) -> list[float]:
    """The floor of each round."""
    return [
        floor_ratio(*seconds)
        for seconds in zip(
            times["plain"], times[COMPOSE], times[CORES], times[WEIGHTS], strict=True
        )
    ]


def rows_of(
    model: str, accumulation: int, plan: Plan, times: Times, parts: Times, seed: int
) -> list[dict[str, Any]]:
    """The JSON rows of one race.

    Args:
        model: The student.
        accumulation: Micro-batches per step.
        plan: What is over-parameterised.
        times: Seconds of each step, and of the parts of the floor, by round.
        parts: Seconds of the optimizer's part of each step.
        seed: Of the intervals.
    """
    rng = np.random.default_rng(seed)
    floor = floors(times)
    bounds = median_interval(floor, rng)
    cores = max(len(entry.core_names) for entry in plan.entries)
    made = []
    for form in (form for form in KNOWN if form in times):
        ratios = paired(times[form], times["plain"])
        found, over = median_interval(ratios, rng), median_interval(paired(ratios, floor), rng)
        plain = form == "plain"
        made.append(
            row(
                model,
                form,
                accumulation=accumulation,
                cores=cores,
                ratio=found.ratio,
                low=finite(found.low),
                high=finite(found.high),
                floor=1.0 if plain else bounds.ratio,
                over_floor=None if plain else over.ratio,
                over_floor_low=None if plain else finite(over.low),
                over_floor_high=None if plain else finite(over.high),
                seconds=median(times[form]),
                optimizer_seconds=median(parts[form]),
                optimizer_share=median(paired(parts[form], times[form])),
                optimizer_ratio=median(paired(parts[form], parts["plain"])),
                rounds=len(floor),
                scale=plan.scale,
                compose_gflop=plan.cost.step_flops / 1e9,
                gemm_gflops=plan.cost.step_flops / 1e9 / median(times[COMPOSE]),
                compose_seconds=median(times[COMPOSE]),
                cores_pass_seconds=median(times[CORES]),
                weights_pass_seconds=median(times[WEIGHTS]),
            )
        )
    return made


def build_rows(
    model: str, accumulation: int, times: Times, parts: Times, seed: int
) -> list[dict[str, Any]]:
    """The JSON rows of this build's forms over the other build's, with intervals.

    The row of the plain form is a check of the race: both builds run the same there.

    Args:
        model: The student.
        accumulation: Micro-batches per step.
        times: Seconds of each step by round, the other build's by `against(form)`.
        parts: Seconds of the optimizer's part of each step.
        seed: Of the intervals.
    """
    rng = np.random.default_rng(seed)
    made = []
    for form in (form for form in KNOWN if form in times):
        theirs = against(form)
        found = median_interval(paired(times[form], times[theirs]), rng)
        part = median_interval(paired(parts[form], parts[theirs]), rng)
        old = median_interval(paired(times[theirs], times[against("plain")]), rng)
        made.append(
            row(
                model,
                form,
                accumulation=accumulation,
                ratio=found.ratio,
                low=finite(found.low),
                high=finite(found.high),
                optimizer_ratio=part.ratio,
                optimizer_low=finite(part.low),
                optimizer_high=finite(part.high),
                seconds=median(times[form]),
                against_seconds=median(times[theirs]),
                optimizer_seconds=median(parts[form]),
                against_optimizer_seconds=median(parts[theirs]),
                against_over_plain=old.ratio,
                against_over_plain_low=finite(old.low),
                against_over_plain_high=finite(old.high),
                rounds=len(times[form]),
            )
        )
    return made


def result_table(rows: Sequence[dict[str, Any]]) -> Any:
    """The rows for people."""
    columns = ("A", "cores", "ms", "ratio", "90 %", "floor", "over floor", "90 %", "rounds")
    parts = ("optimizer ms", "share", "of plain's")
    made = table("Optimizer step / plain step", "model", "form", *columns, *parts)
    for place, r in enumerate(rows):
        made.add_row(
            r["model"],
            r["form"],
            str(r["accumulation"]),
            str(r["cores"]),
            number(r["seconds"] * 1e3, 2),
            number(r["ratio"]),
            span(r["ci_low"], r["ci_high"]),
            number(r["floor"]),
            number(r["over_floor"]),
            span(r["over_floor_low"], r["over_floor_high"]),
            str(r["rounds"]),
            number(r["optimizer_seconds"] * 1e3, 2),
            number(r["optimizer_share"]),
            number(r["optimizer_ratio"]),
            end_section=_last(rows, place),
        )
    return made


def build_table(rows: Sequence[dict[str, Any]]) -> Any:
    """The rows of two builds for people."""
    step = ("A", "ms", "other ms", "ratio", "90 %")
    parts = ("optimizer ms", "other ms", "ratio", "90 %")
    more = ("other / plain", "90 %", "rounds")
    made = table("This build / the other build", "model", "form", *step, *parts, *more)
    for place, r in enumerate(rows):
        made.add_row(
            r["model"],
            r["form"],
            str(r["accumulation"]),
            number(r["seconds"] * 1e3, 2),
            number(r["against_seconds"] * 1e3, 2),
            number(r["ratio"]),
            span(r["ci_low"], r["ci_high"]),
            number(r["optimizer_seconds"] * 1e3, 2),
            number(r["against_optimizer_seconds"] * 1e3, 2),
            number(r["optimizer_ratio"]),
            span(r["optimizer_low"], r["optimizer_high"]),
            number(r["against_over_plain"]),
            span(r["against_over_plain_low"], r["against_over_plain_high"]),
            str(r["rounds"]),
            end_section=_last(rows, place),
        )
    return made


def _last(rows: Sequence[dict[str, Any]], place: int) -> bool:
    """Whether a row is the last of its race."""
    kinds = [(r["model"], r["accumulation"]) for r in rows[place : place + 2]]
    return len(set(kinds)) == 2
