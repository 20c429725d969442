"""Each check of the zoo against a wrong answer that it must reject."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo import checks
from zoo.agreement import ROUNDOFF, compare, outputs, tolerances
from zoo.checks import CheckFailed, Snapshot


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(16, 16)
        self.norm = nn.BatchNorm1d(16)
        self.head = nn.Linear(16, 16)
        self.head.weight = self.inner.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.inner(x))))


@pytest.fixture
def net() -> Net:
    return Net()


def flip(tensor: Tensor) -> None:
    """Change the last bit of one entry."""
    flat = tensor.data.reshape(-1)
    flat[0] = torch.nextafter(flat[0], torch.tensor(float("inf")))


def test_lossless_allows_a_millionth_and_no_more():
    weight = torch.randn(8, 8)
    noise = torch.randn(8, 8)
    near = weight + 5e-7 * noise * weight.norm() / noise.norm()
    far = weight + 2e-6 * noise * weight.norm() / noise.norm()
    assert checks.require_lossless({"w": weight}, {"w": near})["w"] == pytest.approx(5e-7, rel=0.1)
    with pytest.raises(CheckFailed, match=r"1 weights .* w differs by 2\.0e-06"):
        checks.require_lossless({"v": weight, "w": weight}, {"v": weight, "w": far})


@pytest.mark.parametrize("found", [torch.full((4, 4), torch.nan), torch.ones(4), torch.ones(4, 4)])
def test_lossless_rejects_nan_other_shapes_and_something_for_zero(found: Tensor):
    with pytest.raises(CheckFailed, match="not what they were"):
        checks.require_lossless({"w": torch.zeros(4, 4)}, {"w": found})


def test_same_bits_of_odd_tensors():
    nan = torch.tensor([torch.nan, 1.0])
    assert checks.same_bits(nan, nan.clone())
    assert checks.same_bits(torch.tensor(3), torch.tensor(3))
    assert not checks.same_bits(torch.tensor(0.0), torch.tensor(-0.0))
    assert not checks.same_bits(torch.ones(2), torch.ones(2, dtype=torch.float64))
    assert not checks.same_bits(torch.ones(2), torch.ones(1, 2))


def _flag(net: Net) -> None:
    net.norm.eval()


def _gradient(net: Net) -> None:
    net(torch.randn(4, 16)).sum().backward()
    net.norm.load_state_dict(Net().norm.state_dict())


def _replaced(net: Net) -> None:
    net.norm.weight = nn.Parameter(net.norm.weight.detach().clone())


CHANGES = {
    "was changed: norm.running_mean": lambda net: flip(net.norm.running_mean),
    "was changed: inner.weight": lambda net: flip(net.inner.weight),
    "other tensor objects": _replaced,
    "other parameters or buffers": lambda net: net.register_buffer("more", torch.ones(1)),
    "flags": _flag,
    "has gradients": _gradient,
}


@pytest.mark.parametrize("sentence", CHANGES)
def test_a_changed_model_is_found(net: Net, sentence: str):
    before = Snapshot.of(net)
    before.require_same(net)
    CHANGES[sentence](net)
    with pytest.raises(CheckFailed, match=sentence):
        before.require_same(net)


class Other(Net):
    pass


def _other_class(net: Net) -> nn.Module:
    made = Other()
    made.load_state_dict(net.state_dict())
    return made


def _half(net: Net) -> nn.Module:
    net.norm.weight.data = net.norm.weight.data.half()
    return net


def _untied(net: Net) -> nn.Module:
    net.head.weight = nn.Parameter(net.head.weight.detach().clone())
    return net


def _frozen(net: Net) -> nn.Module:
    net.norm.bias.requires_grad_(False)
    return net


def _wider(net: Net) -> nn.Module:
    net.norm.bias.data = torch.zeros(17)
    return net


def _extra(net: Net) -> nn.Module:
    net.register_buffer("more", torch.ones(1))
    return net


def _asleep(net: Net) -> nn.Module:
    return net.eval()


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (_other_class, "gave a Other, wanted Net"),
        (_half, "shape or dtype of norm.weight"),
        (_wider, "shape or dtype of norm.bias"),
        (_untied, "share one Parameter"),
        (_frozen, "requires_grad or the train"),
        (_asleep, "requires_grad or the train"),
        (_extra, "keys: more"),
    ],
)
def test_a_student_of_another_form_is_found(net: Net, damage: Any, sentence: str):
    checks.require_form(net, copy.deepcopy(net))
    with pytest.raises(CheckFailed, match=sentence):
        checks.require_form(net, damage(copy.deepcopy(net)))


def test_one_bit_of_what_was_not_planned_is_found(net: Net):
    wanted = {name: t.detach().clone() for name, t in checks.owned_tensors(net).items()}
    checks.require_bits(wanted, checks.owned_tensors(net), "changed")
    flip(net.norm.bias)
    with pytest.raises(CheckFailed, match="changed: norm.bias"):
        checks.require_bits(wanted, checks.owned_tensors(net), "changed")


def test_the_loss_reaches_every_output_and_has_a_gradient_through_a_last_layer_norm():
    layer = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
    x = torch.randn(4, 8)
    checks.loss_of({"a": layer(x), "ids": torch.arange(3), "b": [layer(x)]}).backward()
    assert layer[0].weight.grad is not None and layer[0].weight.grad.norm() > 1e-3
    with pytest.raises(CheckFailed, match="nothing to train"):
        checks.loss_of({"ids": torch.arange(3), "constant": torch.ones(2)})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_found(value: float):
    assert checks.require_finite(torch.tensor(2.0)) == 2.0
    with pytest.raises(CheckFailed, match="loss of the training step"):
        checks.require_finite(torch.tensor(value))


def test_cores_that_did_not_move_are_named():
    cores = [torch.ones(2), torch.ones(3)]
    moved = [torch.ones(2), torch.ones(3) + 1e-7]
    found = checks.unchanged({"a": cores, "b": cores}, {"a": moved, "b": list(cores)})
    assert found == ["b"]


def test_idle_cores_are_allowed_only_where_the_student_has_no_gradient(net: Net):
    checks.require_idle(["inner.weight"], net)
    net.inner.weight.grad = torch.zeros(16, 16)
    checks.require_idle(["head.weight"], net)
    net.inner.weight.grad[3, 3] = 1e-30
    with pytest.raises(CheckFailed, match="did not move the cores of head.weight"):
        checks.require_idle(["head.weight"], net)


def agreement(net: Net, other: nn.Module, error: float = ROUNDOFF) -> Any:
    inputs = {"x": torch.randn(4, 16)}
    allowed = tolerances(net, inputs, {"inner.weight": error})
    return compare(outputs(other, inputs), outputs(net, inputs), allowed)


def test_equal_models_agree_and_running_them_changes_nothing(net: Net):
    before = Snapshot.of(net)
    found = agreement(net, copy.deepcopy(net))
    assert found and found.error == 0.0
    before.require_same(net)


@pytest.mark.parametrize("scale", [1e-4, 1e-5])
def test_a_weight_that_is_wrong_in_the_fifth_digit_disagrees(net: Net, scale: float):
    other = copy.deepcopy(net)
    other.inner.weight.data *= 1 + scale
    found = agreement(net, other)
    assert not found and found.error > 1.5 and not found.problem


def test_what_rounding_explains_agrees(net: Net):
    other = copy.deepcopy(net)
    weight = other.inner.weight
    step = torch.randn(16, 16)
    weight.data += 1e-6 * step * weight.norm() / step.norm()
    assert not agreement(net, other, error=1e-8)
    assert agreement(net, other, error=1e-6)


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        ([torch.ones(3)], "other shapes"),
        ([torch.ones(2), torch.ones(2)], "other shapes"),
        ([torch.ones(2, dtype=torch.float64)], "other dtypes"),
        ([torch.tensor([1.0, torch.nan])], "infinities or NaNs"),
        ([torch.tensor([1.0, -torch.inf])], "infinities or NaNs"),
    ],
)
def test_outputs_that_cannot_be_compared(found: list[Tensor], sentence: str):
    wrong = compare(found, [torch.ones(2)], [1.0])
    assert not wrong and sentence in wrong.problem
    signs = [torch.tensor([torch.inf])], [torch.tensor([-torch.inf])]
    assert not compare(*signs, [1.0])
    assert compare(signs[0], [torch.tensor([torch.inf])], [0.0])


def test_integers_that_differ_disagree():
    assert compare([torch.arange(3)], [torch.arange(3)], [0.0])
    assert not compare([torch.arange(3) + 1], [torch.arange(3)], [0.0])
