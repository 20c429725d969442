"""The floor's arithmetic, against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from bench.clock import Clock
from bench.floor import (
    GemmRate,
    OptimizerPass,
    Product,
    compose_products,
    core_shapes,
    floor_ratio,
    flops,
    weight_shapes,
)
from torch import nn

import opdf_compile as opdf
from opdf_compile.errors import InternalError
from opdf_compile.parametrizations.mpo import Mpo
from opdf_compile.planning.entry import PlanEntry
from opdf_compile.planning.plans import Plan

CLOCK = Clock(torch.device("cpu"))


@pytest.fixture
def plan() -> Plan:
    return opdf.plan(nn.Linear(16, 16, bias=False), cores=3)


def test_the_floor_by_hand():
    # 2 s plain, 0.8 s compose, 0.3 s over the cores of which 0.1 s would have gone to the weights.
    assert floor_ratio(2.0, 0.8, 0.3, 0.1) == pytest.approx(1.5)
    # With 4 micro-batches only the plain step grows.
    assert floor_ratio(8.0, 0.8, 0.3, 0.1) == pytest.approx(1.125)
    # A pass over the cores that met a neighbour less than the other did is no gift.
    assert floor_ratio(2.0, 0.8, 0.1, 5.0) == pytest.approx(1.4)
    # The pass over the weights counts once: forgetting to take it off would give 1.55.
    assert floor_ratio(2.0, 0.8, 0.3, 0.1) != pytest.approx(1.55)


def test_products_of_a_chain_by_hand(plan: Plan):
    """16 x 16 with 3 cores: modes [4,1,4] x [4,1,4], bonds 16 and 16.

    Compose is (16 x 16)(16 x 16) twice; each product has two of the same size in its backward.
    """
    assert core_shapes(plan) == [(1, 4, 4, 16), (16, 1, 1, 16), (16, 4, 4, 1)]
    assert weight_shapes(plan) == [(16, 16)]
    products = compose_products(plan)
    assert products == {Product(16, 16, 16, layout): 2 for layout in ("nn", "nt", "tn")}
    assert flops(products) == 6 * 2 * 16**3 == plan.cost.step_flops


def test_products_of_unequal_sizes_keep_their_layouts():
    plan = opdf.plan(nn.Linear(6, 35, bias=False), cores=2)
    (entry,) = plan.entries
    spec: Any = entry.spec
    (left, right) = spec.chain.core_shapes
    rows, bond, cols = left[1] * left[2], left[3], right[1] * right[2]
    assert compose_products(plan) == {
        Product(rows, bond, cols, "nn"): 1,
        Product(rows, cols, bond, "nt"): 1,
        Product(bond, rows, cols, "tn"): 1,
    }


def test_a_miscounted_plan_is_noticed(plan: Plan, monkeypatch: pytest.MonkeyPatch):
    """A cost model that forgets the backward would make the floor too low."""
    honest = Mpo.cost
    monkeypatch.setattr(
        Mpo, "cost", lambda self, spec: replace(honest(self, spec), backward_flops=0)
    )
    with pytest.raises(InternalError, match="the products have .* FLOPs, the plan counts"):
        compose_products(plan)


def test_what_is_no_chain_is_refused(plan: Plan):
    (entry,) = plan.entries
    strange = PlanEntry(entry.key, entry.parametrization, spec=object())  # type: ignore[arg-type]
    with pytest.raises(InternalError, match="the floor knows MPO chains"):
        compose_products(Plan((strange,)))


@pytest.mark.parametrize("layout", ["nn", "nt", "tn"])
def test_the_measured_products_have_the_stated_sizes(layout: str):
    product = Product(3, 5, 7, layout)
    rate = GemmRate({product: 2}, CLOCK)
    left, right, result = rate._operands[product]
    assert (left.shape, right.shape, result.shape) == ((3, 5), (5, 7), (3, 7))
    assert torch.equal(result, left @ right)
    # The transposed operand lies in memory as autograd has it.
    assert left.is_contiguous() is (layout != "tn")
    assert right.is_contiguous() is (layout != "nt")


def test_seconds_count_every_product(monkeypatch: pytest.MonkeyPatch):
    """With a clock that gives 1 s per call the sum is the number of products."""
    rate = GemmRate({Product(2, 2, 2, "nn"): 3, Product(2, 3, 2, "nn"): 4}, CLOCK)

    def one_second_each(run, clock):
        calls = 0

        def mm(*args, **kwargs):
            nonlocal calls
            calls += 1

        monkeypatch.setattr(torch, "mm", mm)
        run()
        return float(calls)

    monkeypatch.setattr("bench.floor.timed", one_second_each)
    assert rate.seconds() == pytest.approx(7.0)


def test_the_optimizer_pass_steps_all_tensors():
    measured = OptimizerPass([(3, 4), (5,)], torch.optim.SGD, {"lr": 1.0}, CLOCK)
    tensors = measured._optimizer.param_groups[0]["params"]
    before = [tensor.detach().clone() for tensor in tensors]
    measured.step()
    for tensor, old in zip(tensors, before, strict=True):
        assert torch.equal(tensor, old - tensor.grad)


def test_seconds_are_those_of_one_pass(monkeypatch: pytest.MonkeyPatch):
    """With a clock that gives 1 s per pass one pass takes 1 s, however often it is repeated."""
    measured = OptimizerPass([(2, 2)], torch.optim.SGD, {"lr": 1.0}, CLOCK)
    passes: list[int] = []
    monkeypatch.setattr(measured, "step", lambda: passes.append(1))

    def one_second_each(run, clock):
        run()
        return float(len(passes))

    monkeypatch.setattr("bench.floor.timed", one_second_each)
    assert measured.seconds() == 1.0 and len(passes) > 1
