"""The zoo's own count of Linear and Conv weights, and what it says of a matcher that skips one."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo.census import Coverage, census, coverage

import opdf_compile as opdf


class Net(nn.Module):
    """A Linear that is tied, a Conv, a raw Parameter, one normed weight, one unused layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 8)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.table.weight
        self.conv = nn.Conv1d(8, 8, 3, padding=1)
        self.raw = nn.Parameter(torch.randn(8, 8))
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
        self.unused = nn.Linear(8, 4)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.conv(self.table(ids).mT).mT
        return self.head(self.normed(F.linear(x, self.raw)))


def taken() -> tuple[Net, opdf.MatchReport, Coverage]:
    net, ids = Net(), torch.randint(0, 20, (2, 6))
    report = opdf.match(opdf.trace(net, (ids,)))
    return net, report, coverage(net, census(net, lambda: net(ids)), report)


def test_the_census_counts_each_parameter_once():
    net, _report, found = taken()
    ids = torch.randint(0, 20, (2, 6))
    counted = census(net, lambda: net(ids))
    names = dict(counted.weights.values())
    wanted = {"table.weight": 160, "conv.weight": 192, "raw": 64, "unused.weight": 32}
    assert names == wanted
    assert list(counted.computed) == ["normed"]
    assert found.total == sum(wanted.values())


def test_the_matcher_leaves_none_of_them_out():
    _net, _report, found = taken()
    assert found.silent == ()
    assert found.matched == 192 + 64 and found.tied == 160
    assert found.reasons == {"is not read by forward with these inputs": 32}


def test_a_matcher_that_skips_a_weight_is_found():
    net, report, _found = taken()
    ids = torch.randint(0, 20, (2, 6))
    counted = census(net, lambda: net(ids))
    rows: list[Any] = [*report.matches, *report.refusals]
    for row in rows:
        short = dataclasses.replace(
            report,
            matches=tuple(m for m in report.matches if m is not row),
            refusals=tuple(r for r in report.refusals if r is not row),
        )
        silent = coverage(net, counted, short).silent
        rows_of_normed = row.key.startswith("normed")
        assert silent == (() if rows_of_normed else (row.key,))
    without = dataclasses.replace(
        report,
        matches=tuple(m for m in report.matches if not m.key.startswith("normed")),
        refusals=tuple(r for r in report.refusals if not r.key.startswith("normed")),
    )
    assert coverage(net, counted, without).silent == ("normed",)
