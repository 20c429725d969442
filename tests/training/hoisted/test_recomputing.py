"""What a step multiplies, counted by torch, and what is made again where nothing was kept."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from quick import covering, quick
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import opdf_compile as opdf
from opdf_compile.errors import InternalError
from opdf_compile.training.hoisted.recomputing import keeping_nothing

BFLOAT = partial(torch.autocast, "cpu", torch.bfloat16)


def hoisted(
    cores: int, *, dtype: torch.dtype = torch.float32, **options: Any
) -> opdf.WeightProgram:
    """Two weights of one form, a wide one, a convolution."""
    torch.manual_seed(3)
    layers = (nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 40), nn.Conv1d(6, 8, 3))
    model = nn.Sequential(*layers).to(dtype)
    return opdf.hoist(model, opdf.plan(model, cores=cores), **options)


def pulled(program: opdf.WeightProgram) -> list[Tensor]:
    """The gradients of the cores, where those of the weights are always the same."""
    torch.manual_seed(4)
    for layer in program.module.children():
        weight = layer.get_parameter("weight")
        weight.grad = torch.randn_like(weight)
    assert len(program.backward()) == 4
    return [core.grad for unit in program.units for core in unit.storage if core.grad is not None]


@pytest.mark.parametrize(("cores", "batched"), covering([2, 3, 5], [False, True]))
def test_a_step_multiplies_what_the_plan_says(cores: int, batched: bool) -> None:
    kept, again = (hoisted(cores, batched=batched, recompute=again) for again in (False, True))
    cost = kept.plan.cost
    counts = []
    for program in (kept, again):
        with FlopCounterMode(display=False) as forward:
            program.refresh()
        with FlopCounterMode(display=False) as backward:
            pulled(program)
        counts.append((forward.get_total_flops(), backward.get_total_flops()))
    assert counts[0] == (cost.forward_flops, cost.backward_flops)
    assert counts[1] == (cost.forward_flops, cost.backward_flops + cost.again_flops)
    # The last products, which are the weights, are not made again: with two cores none is.
    assert (cost.again_flops == 0) == (cores == 2)
    assert cost.again_flops < cost.forward_flops


@pytest.mark.parametrize("context", [torch.no_grad, BFLOAT])
def test_the_callers_mode_changes_nothing(context: Any) -> None:
    kept, again = hoisted(3), hoisted(3, recompute=True)
    found = []
    for program in (kept, again):
        with torch.inference_mode():
            program.refresh()
        with context():
            found.append(pulled(program))
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("backend", quick(["eager", "aot_eager"], {"eager"}))
def test_a_compiled_compose_is_made_again(backend: str) -> None:
    exact = torch.float64
    wanted, program = hoisted(3, dtype=exact), hoisted(3, dtype=exact, recompute=True)
    program.compile(backend=backend)
    wanted.refresh()
    program.refresh()
    for found, value in zip(pulled(program), pulled(wanted), strict=True):
        torch.testing.assert_close(found, value, rtol=1e-12, atol=1e-12)


def test_a_core_that_moved_is_composed_anew() -> None:
    wanted, program = hoisted(3), hoisted(3, recompute=True)
    program.refresh()
    for one in (wanted, program):
        with torch.no_grad():
            one.cores("0.weight")[1].mul_(2.0)
    assert all(map(torch.equal, pulled(program), pulled(wanted)))


def test_the_last_product_is_not_made_again() -> None:
    runs: list[str] = []

    def compose(*cores: Tensor) -> tuple[Tensor, ...]:
        first = cores[0] @ cores[1]
        runs.append("first")
        last = first @ cores[2]
        runs.append("last")
        return (last,)

    cores = [torch.ones(3, 3, requires_grad=True) for _ in range(3)]
    (weight,), again = keeping_nothing(compose, cores)
    assert again
    weight.sum().backward()
    assert runs == ["first", "last", "first"]
    for core in cores:
        assert core.grad is not None and torch.equal(core.grad, torch.full((3, 3), 9.0))


def test_one_product_of_cores_has_nothing_to_make_again() -> None:
    cores = [torch.ones(3, 3, requires_grad=True) for _ in range(2)]
    runs: list[int] = []

    def compose(left: Tensor, right: Tensor) -> tuple[Tensor, ...]:
        runs.append(1)
        return (left.T @ right.reshape(3, 3),)

    (weight,), again = keeping_nothing(compose, cores)
    weight.sum().backward()
    assert not again and runs == [1]
    assert cores[0].grad is not None and torch.equal(cores[0].grad, torch.full((3, 3), 3.0))


def test_a_compose_that_is_another_one_the_second_time_is_told() -> None:
    runs: list[int] = []

    def compose(core: Tensor) -> tuple[Tensor, ...]:
        runs.append(1)
        return ((core + 1).exp() if len(runs) == 1 else core + 1,)

    (weight,), _again = keeping_nothing(compose, [torch.ones(2, requires_grad=True)])
    with pytest.raises(InternalError, match="saved 1 tensors, and 0 the second time"):
        weight.sum().backward()
