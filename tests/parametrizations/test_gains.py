"""W = diag(r) V diag(c): products entry by entry in numpy, SGD by hand, decay, clip norms."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from quick import quick
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.errors import FoldError
from opdf_compile.io.saved.core_folding import fold_state
from opdf_compile.parametrizations.gains import Gains, GainsSpec
from opdf_compile.parametrizations.matrix_spec import WeightForm
from opdf_compile.parametrizations.registry import registered
from opdf_compile.planning.entry import PlanEntry

GAINS = Gains()


class Operand(nn.Module):
    """A weight that an addmm reads: stored as (in, out)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 10))
        self.bias = nn.Parameter(torch.randn(10))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)


LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "Linear": (lambda: nn.Linear(6, 10), (5, 6)),
    "addmm": (Operand, (5, 6)),
    "Conv1d": (lambda: nn.Conv1d(4, 6, 3), (2, 4, 7)),
    "Conv2d, groups": (lambda: nn.Conv2d(4, 6, 3, groups=2), (2, 4, 5, 5)),
    "Conv2d, depthwise": (lambda: nn.Conv2d(6, 6, 3, groups=6), (2, 6, 5, 5)),
    "ConvTranspose2d, groups": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), (2, 4, 5, 5)),
}
of_layers = pytest.mark.parametrize(("layer", "size"), LAYERS.values(), ids=LAYERS)


def made(layer: Any, size: tuple[int, ...]) -> tuple[nn.Module, Tensor, opdf.Traced, opdf.Plan]:
    torch.manual_seed(0)
    model = layer().double()
    x = torch.randn(size, dtype=torch.float64)
    traced = opdf.trace(model, (x,))
    return model, x, traced, opdf.plan(traced, parametrization="gains", min_size=1)


def spread(cores: Any) -> None:
    """Gains other than one."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for core in cores:
            core.mul_(1 + 0.3 * torch.randn(core.shape, generator=generator).to(core))


def product(cores: Any, shape: Any) -> np.ndarray:
    """r_i V_ij c_j of the matrix axis 0 x the others, entry by entry."""
    r, c, matrix = (core.detach().double().numpy() for core in cores)
    weight = np.empty(matrix.shape)
    for i in range(matrix.shape[0]):
        for j in range(matrix.shape[1]):
            weight[i, j] = r[i, 0] * matrix[i, j] * c[0, j]
    return weight.reshape(tuple(shape))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_start_is_the_weight_bit_for_bit(dtype: torch.dtype) -> None:
    limits = torch.finfo(dtype)
    edges = [[limits.max, limits.min, limits.tiny, limits.smallest_normal / 4, 0.0, -0.0]]
    plain = torch.randn(7, 6, generator=torch.Generator().manual_seed(0))
    weight = torch.cat([plain.double(), torch.tensor(edges, dtype=torch.float64)]).to(dtype)
    spec = GainsSpec((8, 6), str(dtype).removeprefix("torch."))
    r, c, matrix = GAINS.decompose(weight, spec)
    assert torch.equal(r, torch.ones_like(r)) and torch.equal(c, torch.ones_like(c))
    assert torch.equal(matrix, weight.to(matrix.dtype))
    composed = GAINS.compose((r, c, matrix), spec)
    assert torch.equal(composed, weight) and torch.equal(composed.signbit(), weight.signbit())
    matrix[0, 0] = 5.0
    assert weight[0, 0] != 5.0, "a copy"


@of_layers
@pytest.mark.parametrize("dtype", quick([torch.float32, torch.float64], {torch.float32}))
def test_a_fold_is_the_product_rounded_once(
    layer: Any, size: tuple[int, ...], dtype: torch.dtype
) -> None:
    model = layer().to(dtype)
    traced = opdf.trace(model, (torch.randn(size, dtype=dtype),))
    (entry,) = (plan := opdf.plan(traced, parametrization="gains", min_size=1)).entries
    inline = opdf.expand(traced, plan)
    spread(inline.cores("weight"))
    wanted = product(inline.cores("weight"), model.weight.shape)
    folded = opdf.fold(inline).state_dict()["weight"].numpy()
    # Half a unit in the last place, and two roundings of float64.
    half = float(torch.finfo(dtype).eps) / 2
    assert np.all(np.abs(folded - wanted) <= (half + 2**-51) * np.abs(wanted))
    start = opdf.fold(opdf.expand(traced, plan)).state_dict()["weight"]
    assert torch.equal(start, model.weight.detach())
    assert np.abs(folded - start.numpy()).max() > 0.01, "the control"
    r, c, _matrix = entry.by.shapes(entry.spec)
    assert entry.cost.added == r[0] + c[1] == model.weight.shape[0] + model.weight[0].numel()


@of_layers
def test_the_hoisted_gradients_are_those_of_the_inline_form(
    layer: Any, size: tuple[int, ...]
) -> None:
    model, x, traced, plan = made(layer, size)
    inline, program = opdf.expand(traced, plan), opdf.hoist(model, plan)
    for cores in (inline.cores("weight"), program.cores("weight")):
        spread(cores)
    program.refresh()
    np.testing.assert_allclose(
        model.weight.detach().numpy(),
        product(inline.cores("weight"), model.weight.shape),
        rtol=1e-14,
    )
    inline(x).square().sum().backward()
    model(x).square().sum().backward()
    grad = model.weight.grad.flatten(1).numpy().copy()
    program.backward()
    r, c, matrix = (core.detach().numpy() for core in program.cores("weight"))
    by_hand = (
        (grad * matrix * c).sum(1, keepdims=True),
        (grad * matrix * r).sum(0, keepdims=True),
        grad * r * c,
    )
    ways = zip(inline.cores("weight"), program.cores("weight"), by_hand, strict=True)
    for inner, outer, wanted in ways:
        np.testing.assert_allclose(outer.grad.numpy(), wanted, rtol=1e-11, atol=1e-11)
        np.testing.assert_allclose(inner.grad.numpy(), wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("layer", ["Linear", "Conv2d, groups"])
def test_the_metric_of_a_step_of_sgd(layer: str) -> None:
    """dW = -lr [ r^2 G c^2 + W rowsum(W G) / r^2 + W colsum(W G) / c^2 ] + O(lr^2)."""
    model, _x, _traced, plan = made(*LAYERS[layer])
    grad = torch.sin(torch.arange(model.weight.numel()).double()).reshape(model.weight.shape)

    def step(lr: float) -> np.ndarray:
        student = copy.deepcopy(model)
        opt = opdf.Overparam(student, torch.optim.SGD, plan=plan, lr=lr)
        spread(opt.program.cores("weight"))
        opt.program.refresh()
        before = student.weight.detach().clone()
        for parameter in student.parameters():
            parameter.grad = torch.zeros_like(parameter)
        student.weight.grad = grad.clone()
        cores = [core.detach().clone() for core in opt.program.cores("weight")]
        opt.step()
        moved = ((student.weight.detach() - before) / lr).flatten(1).numpy()
        r, c, _matrix = (core.numpy() for core in cores)
        weight, g = before.flatten(1).numpy(), grad.flatten(1).numpy()
        metric = r**2 * g * c**2
        rows, cols = (weight * g).sum(1, keepdims=True), (weight * g).sum(0, keepdims=True)
        metric = metric + weight * rows / r**2 + weight * cols / c**2
        assert np.abs(moved + g).max() > 0.1 * np.abs(g).max(), "the control: plain SGD"
        return np.abs(moved + metric) / np.abs(metric).max()

    # The rest is of second order: a step of a tenth has a tenth of it.
    errors = [step(lr).max() for lr in (1e-3, 1e-4)]
    assert errors[0] < 1e-2
    assert errors[1] == pytest.approx(errors[0] / 10, rel=0.02)
    assert step(1e-7).max() < 3e-6


def decayed(decay: Any, share: float = 0.02, **options: Any) -> tuple[Tensor, list[Tensor], Any]:
    """The weight before a step without gradients, and cores and weight after it."""
    torch.manual_seed(0)
    model = nn.Linear(12, 8).double()
    (entry,) = opdf.plan(model, parametrization="gains").entries
    spec = replace(entry.spec, decay_share=share)
    plan = opdf.Plan((replace(entry, spec=spec),))
    start = model.weight.detach().clone()
    given = {"lr": 0.1, "weight_decay": 0.3, **options}
    opt = opdf.Overparam(model, torch.optim.SGD, plan=plan, decay=decay, **given)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    opt.step()
    cores = [core.detach() for core in opt.program.cores("weight")]
    return start, cores, model.weight.detach()


@pytest.mark.parametrize("share", [0, 0.02, 0.25])
def test_decay_of_the_weight_is_small_on_the_gains(share: float) -> None:
    start, (r, c, matrix), weight = decayed("weight", share)
    close: Any = {"rtol": 1e-13, "atol": 1e-13}
    torch.testing.assert_close(weight, 0.97 * start, **close)
    for gain in (r, c):
        torch.testing.assert_close(gain, torch.full_like(gain, 0.97**share), **close)
    torch.testing.assert_close(matrix, 0.97 ** (1 - 2 * share) * start, **close)


@pytest.mark.parametrize("share", [0, 0.02])
def test_a_decay_that_turns_the_weight_around_leaves_the_gains_positive(share: float) -> None:
    start, (r, c, _matrix), weight = decayed("weight", share, lr=10.0)
    torch.testing.assert_close(weight, -2.0 * start, rtol=1e-12, atol=1e-12)
    assert bool((r > 0).all()) and bool((c > 0).all())


def test_decay_of_the_cores_is_the_same_on_all_three() -> None:
    start, (r, c, matrix), weight = decayed("cores")
    for gain in (r, c):
        torch.testing.assert_close(gain, torch.full_like(gain, 0.97))
    torch.testing.assert_close(matrix, 0.97 * start)
    torch.testing.assert_close(weight, 0.97**3 * start)


def total(parameters: Any) -> float:
    return float(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))


class Net(nn.Sequential):
    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 12))


X = torch.randn(6, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_a_clip_of_the_hoisted_form_sees_the_plain_gradients() -> None:
    model, plain = Net().double(), Net().double()
    plan = opdf.plan(model, parametrization="gains")
    opt = opdf.Overparam(model, torch.optim.SGD, plan=plan, lr=0.1)
    spread(opt.program.cores("0.weight"))
    opt.program.refresh()
    plain.load_state_dict(model.state_dict())
    for network in (model, plain):
        network(X).square().sum().backward()
    clipped = float(nn.utils.clip_grad_norm_(model.parameters(), 1.0))
    assert clipped == total(plain.parameters()) > 1.0


@pytest.mark.parametrize("batched", [False, True])
def test_clip_norms_of_cores_leave_the_gains_out(batched: bool) -> None:
    model, plain = Net().double(), Net().double()
    traced = opdf.trace(plain, (X,))
    plan = opdf.plan(traced, parametrization="gains")
    inline, program = opdf.expand(traced, plan), opdf.hoist(model, plan, batched=batched)
    assert len(program.units) == (1 if batched else 2)
    for network in (model, plain, inline):
        network(X).square().sum().backward()
    program.backward()
    wanted = total(plain.parameters())
    for training in (inline, program):
        # At the start dL/dV is dL/dW.
        counted = list(training.clip_norm_parameters())
        assert total(counted) == pytest.approx(wanted, rel=1e-12)
        assert total(training.parameters()) > 1.01 * wanted, "the control"
        # In a batch the gains of both weights lie in one stack.
        left_out = 2 if batched and training is program else 4
        assert len(list(training.parameters())) - len(counted) == left_out
    chain = opdf.expand(traced, opdf.plan(traced, cores=3))
    assert list(map(id, chain.clip_norm_parameters())) == list(map(id, chain.parameters()))


def test_both_forms_take_the_same_clipped_step() -> None:
    model = Net().double()
    traced = opdf.trace(model, (X,))
    plan = opdf.plan(traced, parametrization="gains")
    inline = opdf.expand(traced, plan)
    hoisted = opdf.Overparam(model, torch.optim.SGD, plan=plan, lr=0.1)
    for network in (model, inline):
        network(X).square().sum().backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    hoisted.step()
    norm = nn.utils.get_total_norm([p.grad for p in inline.clip_norm_parameters()])
    nn.utils.clip_grads_with_norm_(inline.parameters(), 1.0, norm)
    torch.optim.SGD(inline.parameters(), lr=0.1).step()
    for key, value in opdf.fold(inline).state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value, rtol=1e-12, atol=1e-13)


def test_muon_steps_gains_by_the_direction_of_their_gradient() -> None:
    model = Net().double()
    plan = opdf.plan(model, parametrization="gains")
    weights = [model[0].weight, model[2].weight]
    options: Any = {"plan": plan, "module": model, "lr": 0.01, "weight_decay": 0.0}
    opt = opdf.Overparam(weights, torch.optim.Muon, **options)
    start = model[0].weight.detach().clone()
    model(X).square().sum().backward()
    opt.step()
    grad = model[0].weight.grad
    assert grad is not None
    r, c, _matrix = (core.detach() for core in opt.program.cores("0.weight"))
    for gain, slope in ((r[:, 0], (start * grad).sum(1)), (c[0], (start * grad).sum(0))):
        # Its iteration runs in bfloat16.
        torch.testing.assert_close(
            nn.functional.normalize(gain - 1, dim=0),
            -nn.functional.normalize(slope, dim=0),
            rtol=0,
            atol=1e-2,
        )
    assert not torch.equal(model[0].weight.detach(), start)


def test_a_plan_carries_the_share_of_decay() -> None:
    model = nn.Linear(12, 8)
    plan = opdf.plan(model, parametrization="gains")
    value = plan.to_json()
    assert value["entries"][0]["spec"]["decay_share"] == 0.02
    value["entries"][0]["spec"]["decay_share"] = 0.1
    assert opdf.Plan.from_json(value).entries[0].terms == ({2: 0.8, 0: 0.1, 1: 0.1},)
    assert "8 x 12 gains" in str(plan)


@pytest.mark.parametrize("shape", [(48, 1), (1, 48), (6, 6)])
def test_tensors_without_a_plan_are_not_taken_for_those_of_another(shape: tuple[int, int]) -> None:
    """Of one column, or rank 1, the tensors of `spectral` are the same in another order."""
    student = nn.Linear(shape[1], shape[0], bias=False)
    for name in ("gains", "spectral"):
        by = registered(name)
        spec = by.propose(WeightForm(shape), cores=3)
        cores = list(by.decompose(student.weight, spec))
        spread(cores)
        entry = PlanEntry("weight", name, spec)
        found = fold_state(dict(zip(entry.core_names, cores, strict=True)), None, student)
        assert torch.equal(found["weight"], entry.fold(cores))
    with pytest.raises(FoldError, match="gains has"):
        GAINS.infer([shape, (shape[0], 1), (1, shape[1])], WeightForm(shape))
