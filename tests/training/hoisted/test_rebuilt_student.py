"""A student that was rebuilt under its cores: one sentence from every door, and nothing moves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from quick import covering
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import opdf_compile as opdf
from opdf_compile.errors import InputError

X = torch.linspace(-1.0, 1.0, 32).reshape(4, 8)


class Adapted(nn.Module):
    """A layer with a low-rank path beside it, as adapter libraries put in a layer's place."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.base(x) + self.up(self.down(x))
        return result


def student(*, normed: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    if normed:
        parametrizations.weight_norm(made[0])
    return made


def _norm_removed(m: nn.Sequential) -> None:
    parametrize.remove_parametrizations(m[0], "weight")


def _norm_added(m: nn.Sequential) -> None:
    parametrizations.weight_norm(m[0])


def _adapter_added(m: nn.Sequential) -> None:
    m[0] = Adapted(m[0])  # type: ignore[arg-type]


def _layer_replaced(m: nn.Sequential) -> None:
    m[0] = nn.Linear(8, 16)


def _layer_converted(m: nn.Sequential) -> None:
    m[0] = nn.Identity()


def _weight_resized(m: nn.Sequential) -> None:
    m[0].weight = nn.Parameter(torch.ones(16, 9))


def _weight_deleted(m: nn.Sequential) -> None:
    del m[0].weight


# change, whether the student has a weight norm before, what the sentence says of the weight
CHANGES: list[tuple[Callable[[nn.Sequential], None], bool, str]] = [
    (_norm_removed, True, "'0.parametrizations.weight.original1' is gone, or that of another"),
    (_norm_added, False, "'0.weight' is no Parameter any more"),
    (_adapter_added, False, "'0.weight' is gone, or that of another layer now"),
    (_layer_replaced, False, "'0.weight' is gone, or that of another layer now"),
    (_layer_converted, False, "'0.weight' is gone, or that of another layer now"),
    (_weight_resized, False, r"'0.weight' is of shape \(16, 9\) now, it was \(16, 8\)"),
    (_weight_deleted, False, "'0.weight' is no Parameter any more"),
]
OF_AN_OPTIMIZER: dict[str, Callable[[Any], Any]] = {
    "step": lambda opt: opt.step(),
    "refresh": lambda opt: opt.program.refresh(),
    "refresh from cores": lambda opt: opt.program.refresh("cores"),
    "absorb": lambda opt: opt.absorb(),
    "fold": opdf.fold,
    "fold cores": lambda opt: opdf.fold(opt, source="cores"),
    "load": lambda opt: opt.load_state_dict(opt.state_dict()),
}
OF_A_PROGRAM: dict[str, Callable[[Any], Any]] = {
    "backward": lambda program: program.backward(),
    "refresh": lambda program: program.refresh(),
    "changed": lambda program: program.changed(),
    "weights": lambda program: program.weights(program.owned()),
    "fold": opdf.fold,
}


@pytest.mark.parametrize(("rebuilt", "door"), covering(CHANGES, OF_AN_OPTIMIZER))
def test_an_optimizer_says_that_its_student_was_rebuilt(
    rebuilt: tuple[Callable[[nn.Sequential], None], bool, str], door: str
) -> None:
    change, normed, said = rebuilt
    model = student(normed=normed)
    opt = opdf.Overparam(model, torch.optim.SGD, lr=0.1, cores=2)
    model(X).square().sum().backward()
    stored = [core for unit in opt.program.units for core in unit.storage]
    cores = [core.clone() for core in stored]
    change(model)
    with pytest.raises(InputError, match=f"^the student's {said}.*; fold before the student"):
        OF_AN_OPTIMIZER[door](opt)
    for before, after in zip(cores, stored, strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize(("rebuilt", "door"), covering(CHANGES, OF_A_PROGRAM))
def test_a_program_says_that_its_student_was_rebuilt(
    rebuilt: tuple[Callable[[nn.Sequential], None], bool, str], door: str
) -> None:
    change, normed, said = rebuilt
    model = student(normed=normed)
    program = opdf.hoist(model, opdf.plan(model, cores=2))
    model(X).square().sum().backward()
    change(model)
    with pytest.raises(InputError, match=said):
        OF_A_PROGRAM[door](program)


def test_the_weights_as_they_are_can_still_be_taken() -> None:
    model = student(normed=True)
    opt = opdf.Overparam(model, torch.optim.SGD, lr=0.1, cores=2)
    model(X).square().sum().backward()
    opt.step()
    wanted = model(X)
    _norm_removed(model)
    assert torch.allclose(opdf.fold(opt, source="weights")(X), wanted, atol=1e-6)


def test_what_has_no_cores_may_be_rebuilt() -> None:
    model = student()
    opt = opdf.Overparam(model, torch.optim.SGD, lr=0.1, plan=opdf.plan(model, include=["0.*"]))
    model[2] = nn.Linear(16, 4)
    before = model[0].weight.detach().clone()
    model(X).square().sum().backward()
    opt.step()
    assert not torch.equal(before, model[0].weight)
    assert torch.allclose(opdf.fold(opt)(X), model(X), atol=1e-5)
