"""How gradients travel from weights to cores: in few calls of autograd, whatever their number."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from work import calls as work_of
from work import require_linear

import opdf_compile as opdf
from opdf_compile.training.hoisted import unit as module

Calls = list[int]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """How many gradients each call of autograd took."""
    found: Calls = []
    own = torch.autograd.backward

    def counted(edges: tuple[object, ...], grads: tuple[Tensor, ...]) -> None:
        found.append(len(edges))
        own(edges, grads)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.autograd, "backward", counted)
    return found


def pulled(batched: bool = False, recompute: bool = False) -> list[Tensor]:
    """Gradients of the cores of six weights, the last without one."""
    torch.manual_seed(5)
    model = nn.ModuleList(nn.Linear(8, 8) for _ in range(6)).double()
    program = opdf.hoist(model, opdf.plan(model, cores=3), batched=batched, recompute=recompute)
    program.refresh()
    for layer in list(model)[:5]:
        layer.weight.grad = torch.randn(8, 8, dtype=torch.float64)
    keys = program.backward()
    assert keys == tuple(f"{place}.weight" for place in range(5))
    cores = [core for unit in program.units for core in unit.storage]
    return [torch.zeros_like(core) if core.grad is None else core.grad for core in cores]


def test_small_weights_go_together(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    together = pulled()
    assert calls == [5]
    monkeypatch.setattr(module, "_AT_ONCE", 128)
    apart = pulled()
    assert calls == [5, 2, 2, 1]
    assert all(map(torch.equal, together, apart))
    assert sum(bool(grad.any()) for grad in apart) == 15


def test_a_batch_is_one(calls: Calls) -> None:
    stacks = pulled(batched=True)
    assert calls == [1]
    single = pulled()
    for place, stack in enumerate(stacks):
        rows = torch.stack(single[place::3])
        # A batched product may sum in another order: 16 terms or fewer, twice.
        assert torch.allclose(stack, rows, rtol=0, atol=1e-14 * float(rows.abs().max()) * 32)
        assert not stack[5].any()


def test_what_is_composed_again_is_let_go_weight_by_weight(calls: Calls) -> None:
    again = pulled(recompute=True)
    assert calls == [1] * 5
    assert all(map(torch.equal, again, pulled()))


def test_asking_whether_they_are_many_takes_no_squares() -> None:
    core = torch.ones(1, requires_grad=True)
    edge, grad = get_gradient_edge(core * 2), torch.ones(1)

    def work(count: int) -> int:
        way = module.Way()

        def fill() -> None:
            for _ in range(count):
                way.add(edge, grad)
                way.go(full=True)

        return work_of(fill)

    require_linear(work, 100)
    assert core.grad is None
