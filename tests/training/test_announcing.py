"""Whoever factorises weights says first what they will cost, then how far it is."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from torch import nn

import opdf_compile as opdf

Build = Callable[[nn.Module, "opdf.Plan"], object]
BUILDS: dict[str, Build] = {
    "Overparam": lambda student, plan: opdf.Overparam(student, plan=plan),
    "hoist": opdf.hoist,
    "expand": lambda student, plan: opdf.expand(opdf.trace(student, (torch.randn(2, 1024),)), plan),
}


@pytest.fixture(scope="module")
def dear() -> nn.Module:
    return nn.Sequential(nn.Linear(1024, 1024), nn.Linear(1024, 8))


def said(caplog: pytest.LogCaptureFixture, level: int, start: str) -> list[str]:
    messages = (record.getMessage() for record in caplog.records if record.levelno == level)
    return [message for message in messages if message.startswith(start)]


@pytest.mark.parametrize("name", BUILDS)
def test_a_dear_weight_is_warned_of_before_it_is_factorised(
    name: str, dear: nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="opdf_compile"):
        BUILDS[name](dear, opdf.plan(dear, cores=5))
    (warning,) = said(caplog, logging.WARNING, "0.weight (1024x1024) adds")
    assert "exclude=['0.weight']" in warning
    steps = said(caplog, logging.INFO, "factorising")
    assert steps[0] == "factorising 0.weight (1024x1024), 1 of 2"
    assert len(steps) == 2
    order = [record.getMessage() for record in caplog.records]
    assert order.index(warning) < order.index(steps[0])


@pytest.mark.parametrize("name", BUILDS)
def test_usual_weights_are_not(
    name: str, dear: nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="opdf_compile"):
        BUILDS[name](dear, opdf.plan(dear, cores=5, exclude=["0.weight"]))
    assert said(caplog, logging.WARNING, "") == []
    assert said(caplog, logging.INFO, "factorising") == ["factorising 1.weight (8x1024), 1 of 1"]
