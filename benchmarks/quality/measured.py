"""The units' figures as paired scores, and the rules for the learning rate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from statistics import mean
from typing import Any

from quality.rows import Scores

# What PROTOCOL.md fixes.
PRIMARY = {"method": "mpo", "baseline": "plain", "start": "warm", "length": "short"}
PRIMARY_ENDPOINTS = {"accuracy": "sgd", "cosine": "adamw"}
MOST_KL = 10.0
PAIRS = (
    ("mpo", "plain"),
    ("svd", "plain"),
    ("powerprop", "plain"),
    ("wide", "plain"),
    ("ema", "plain"),
    ("plain", "no-kd"),
    ("mpo", "ema"),
    ("mpo", "plain-cached-clock"),
    ("mpo", "plain-online-clock"),
)


def scores_of(units: Iterable[Mapping[str, Any]]) -> list[Scores]:
    """Every comparison of `PAIRS` that was run, both endpoints."""
    found = []
    for unit in units:
        sides = {(r["method"], r["start"]): r for r in unit["results"]}
        for start in ("random", "warm"):
            pairs = [p for p in PAIRS if all((name, start) in sides for name in p)]
            for method, baseline in pairs:
                for endpoint in ("accuracy", "kl"):
                    ours, theirs = (
                        tuple(min(v, MOST_KL) for v in sides[name, start][endpoint])
                        for name in (method, baseline)
                    )
                    found.append(
                        Scores(
                            task=unit["task"],
                            start=start,
                            length=unit["length"],
                            method=method,
                            baseline=baseline,
                            endpoint=endpoint,
                            ours=ours,
                            theirs=theirs,
                            optimizer=unit["optimizer"],
                        )
                    )
    return found


def with_question(scores: Scores) -> Scores:
    """Mark what belongs to the primary family."""
    same = all(getattr(scores, key) == value for key, value in PRIMARY.items())
    primary = same and PRIMARY_ENDPOINTS.get(scores.endpoint) == scores.optimizer
    return replace(scores, question="primary") if primary else scores


def rules_of(units: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean validation accuracy of every rule, task by task (both starts, all units of SGD)."""
    gathered: dict[tuple[str, str, str], list[float]] = {}
    for unit in units:
        if unit["optimizer"] != "sgd":
            continue
        for rule in unit["rules"]:
            key = rule["method"], unit["task"], rule["rule"]
            gathered.setdefault(key, []).extend(rule["validation_accuracy"])
    return [
        {"method": method, "task": task, "rule": rule, "validation_accuracy": mean(values)}
        for (method, task, rule), values in gathered.items()
    ]


def edges_of(units: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Winners of the tuning that lie at the edge of all that was tried, and on which axes."""
    return [
        {
            "task": unit["task"],
            "optimizer": unit["optimizer"],
            "length": unit["length"],
            "start": r["start"],
            "method": r["method"],
            "axes": r["tuned"]["edges"],
        }
        for unit in units
        for r in unit["results"]
        if r["tuned"]["edges"]
    ]
