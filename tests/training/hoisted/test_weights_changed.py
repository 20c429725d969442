"""Invariant 8: a weight that something else changed is never overwritten or dropped in silence."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from quick import covering
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import opdf_compile as opdf
from opdf_compile.errors import UserError, WeightsChanged

Change = Callable[[nn.Sequential], object]
KEYS = ("0.weight", "1.weight", "2.weight", "3.weight")
REMEDY = (
    "changed since the last refresh (a checkpoint was loaded, or another optimizer stepped them). "
    "Keep them: absorb(). Keep the cores: fold(program, source='cores'). Changed: "
)


def hoisted(batched: bool = False) -> tuple[nn.Sequential, opdf.WeightProgram]:
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))
    program = opdf.hoist(model, opdf.plan(model, cores=3), batched=batched)
    program.refresh()
    return model, program


def bits(model: nn.Module) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in model.state_dict().items()}


def in_place(model: nn.Sequential) -> None:
    with torch.no_grad():
        model[0].weight[3, 4] += 1e-3


def through_data(model: nn.Sequential) -> None:
    """Moves no version counter."""
    model[0].weight.data.mul_(1.01)


def new_data(model: nn.Sequential) -> None:
    model[0].weight.data = torch.randn(8, 8)


def new_parameter(model: nn.Sequential) -> None:
    model[0].weight = nn.Parameter(torch.randn(8, 8))


def negated(model: nn.Sequential) -> None:
    with torch.no_grad():
        model[0].weight.neg_()


def rows_swapped(model: nn.Sequential) -> None:
    with torch.no_grad():
        model[0].weight[[0, 1]] = model[0].weight[[1, 0]]


def loaded(model: nn.Sequential) -> None:
    model[0].load_state_dict(nn.Linear(8, 8).state_dict())


def stepped(model: nn.Sequential) -> None:
    other = torch.optim.AdamW(model[0].parameters(), lr=1e-4)
    model[0](torch.randn(2, 8)).sum().backward()
    other.step()


def one_bit(model: nn.Sequential) -> None:
    model[0].weight.data.view(torch.int32)[7, 7] ^= 1


def poisoned(model: nn.Sequential) -> None:
    model[0].weight.data[1, 1] = float("nan")


@pytest.fixture(autouse=True, params=["copies", "checksums"])
def known_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small weights are known by copies, those of larger programs by checksums."""
    if request.param == "checksums":
        monkeypatch.setattr("opdf_compile.training.hoisted.program.LITTLE", 0)


CHANGES = [
    *(in_place, through_data, new_data, new_parameter, negated, rows_swapped),
    *(loaded, stepped, one_bit, poisoned),
]


@pytest.mark.parametrize(("change", "batched"), covering(CHANGES, [False, True]))
def test_every_change_stops_refresh_and_fold(change: Change, batched: bool) -> None:
    model, program = hoisted(batched)
    change(model)
    before = bits(model)
    cores = {key: [core.clone() for core in program.cores(key)] for key in KEYS}
    assert program.changed() == ("0.weight",)
    for use in (program.refresh, program.fold, lambda: opdf.fold(program)):
        with pytest.raises(WeightsChanged) as caught:
            use()
        assert str(caught.value) == f"1 of 4 weights {REMEDY}0.weight."
        assert isinstance(caught.value, UserError)
    assert bits(model) == before, "nothing was overwritten"
    for key in KEYS:
        assert all(torch.equal(a, b) for a, b in zip(program.cores(key), cores[key], strict=True))


@pytest.mark.parametrize(
    ("count", "sentence"),
    [
        (2, f"2 weights {REMEDY}0.weight, 1.weight."),
        (3, f"3 weights {REMEDY}0.weight, 1.weight, 2.weight."),
        (4, f"4 weights {REMEDY}0.weight, 1.weight, 2.weight, ..."),
    ],
)
def test_the_sentence_counts_and_names(count: int, sentence: str) -> None:
    model, program = hoisted()
    with torch.no_grad():
        for layer in range(count):
            model[layer].weight.mul_(2.0)
    with pytest.raises(WeightsChanged) as caught:
        program.refresh()
    assert str(caught.value) == sentence


def test_a_change_before_the_first_refresh_counts() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    program = opdf.hoist(model, opdf.plan(model))
    assert program.changed() == ()
    through_data(model)
    with pytest.raises(WeightsChanged):
        program.refresh()


# What is no change.


def test_an_average_swapped_in_and_out_again_is_no_change() -> None:
    model, program = hoisted()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    average.update_parameters(model)  # The first update copies.
    for _ in range(3):
        program.zero_grad()
        model(torch.randn(4, 8)).pow(2).sum().backward()
        program.backward()
        torch.optim.SGD(program.parameters(), lr=1e-2).step()
        program.refresh()
        average.update_parameters(model)
        own = copy.deepcopy(model.state_dict())
        model.load_state_dict(average.module.state_dict())
        assert program.changed() == KEYS
        with pytest.raises(WeightsChanged):
            program.refresh()
        model.load_state_dict(own)
        assert program.changed() == ()
        program.refresh()


def nothing(model: nn.Sequential) -> None:
    model(torch.randn(4, 8)).sum().backward()


def other_parameters(model: nn.Sequential) -> None:
    with torch.no_grad():
        model[0].bias.add_(1.0)


def same_values(model: nn.Sequential) -> None:
    model.load_state_dict(copy.deepcopy(model.state_dict()))


def another_layout(model: nn.Sequential) -> None:
    weight = model[0].weight
    weight.data = weight.data.mT.contiguous().mT


def the_same_parameter_again(model: nn.Sequential) -> None:
    model[0].weight = nn.Parameter(model[0].weight.detach().clone())


def modes(model: nn.Sequential) -> None:
    model.eval().requires_grad_(False).train().requires_grad_(True)


@pytest.mark.parametrize(
    "change",
    [nothing, other_parameters, same_values, another_layout, the_same_parameter_again, modes],
    ids=lambda change: change.__name__,
)
def test_what_leaves_the_bits_alone_is_no_change(change: Change) -> None:
    model, program = hoisted()
    change(model)
    assert program.changed() == ()
    program.refresh()
    opdf.fold(program)


# The ways out.


def test_absorb_keeps_the_weights() -> None:
    model, program = hoisted()
    through_data(model)
    wanted = bits(model)
    assert program.absorb() == ("0.weight",)
    assert bits(model) == wanted
    assert program.changed() == ()
    folded = opdf.fold(program)
    torch.testing.assert_close(folded.get_parameter("0.weight"), model[0].weight)  # type: ignore[union-attr]
    program.refresh()


def test_fold_from_the_cores_or_from_the_weights() -> None:
    model, program = hoisted()
    composed = model[0].weight.detach().clone()
    new_data(model)
    before = bits(model)
    cores, weights = (opdf.fold(program, source=source) for source in ("cores", "weights"))
    torch.testing.assert_close(cores.get_parameter("0.weight").detach(), composed)  # type: ignore[union-attr]
    assert bits(weights) == before  # type: ignore[arg-type]
    assert bits(model) == before, "fold changes no module that it was not given"


def test_a_refresh_from_the_cores_overwrites() -> None:
    model, program = hoisted()
    composed = model[0].weight.detach().clone()
    new_data(model)
    program.refresh(source="cores")
    assert torch.equal(model[0].weight, composed)
    assert program.changed() == ()


def test_a_loaded_state_expects_the_weights_of_its_time() -> None:
    model, program = hoisted()
    state, early = copy.deepcopy(program.state_dict()), copy.deepcopy(model.state_dict())
    with torch.no_grad():
        program.cores("2.weight")[0].mul_(3.0)
    program.refresh()
    for module_first in (True, False):
        steps = [lambda: model.load_state_dict(early), lambda: program.load_state_dict(state)]
        for step in steps if module_first else reversed(steps):
            step()
        assert program.changed() == ()
        program.refresh()
        with torch.no_grad():
            program.cores("2.weight")[0].mul_(3.0)
        program.refresh()
    program.load_state_dict(state)
    assert program.changed() == ("2.weight",)
