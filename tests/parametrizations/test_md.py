"""W = diag(g_r) V diag(g_c) with |V| held: steps by hand in numpy, the start, n, both forms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.errors import PlanError
from opdf_compile.io.saved.expanded_file import fold_file, save_expanded
from opdf_compile.parametrizations.matrix_spec import MatrixSpec, WeightForm
from opdf_compile.parametrizations.md import Md

MD = Md()
STEPS, LR = 6, 0.05


def network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(16, 8)
    ).to(dtype)


X = torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
KEYS = ("0.weight", "3.weight")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["random", "zero", "constant", "huge"])
def test_the_start_is_the_weight_bit_for_bit(dtype: torch.dtype, kind: str) -> None:
    plain = torch.randn(7, 6, generator=torch.Generator().manual_seed(0))
    huge = min(torch.finfo(dtype).max / 64, 1e150)
    weight = {
        "random": plain,
        "zero": torch.zeros(7, 6),
        "constant": torch.full((7, 6), 0.3),
        "huge": plain.sign().double() * huge,
    }[kind].to(dtype)
    spec = MatrixSpec((7, 6), str(dtype).removeprefix("torch."))
    tensors = MD.decompose(weight, spec)
    assert torch.equal(MD.compose(tensors, spec), weight)
    exact = MD.compose([t.double() for t in tensors], spec.with_dtype("float64"))
    assert torch.equal(exact.to(dtype), weight)
    wanted = float(torch.linalg.vector_norm(weight.double()))
    assert float(tensors[3]) == pytest.approx(wanted, rel=1e-7)
    before = tensors[2].clone()
    MD.retract(tensors, spec)
    torch.testing.assert_close(tensors[2], before, rtol=3e-7, atol=0)
    tensors[2].mul_(3.0)
    MD.retract(tensors, spec)
    torch.testing.assert_close(tensors[2], before, rtol=3e-7, atol=0)


def test_a_norm_beyond_the_dtype_is_not_held() -> None:
    spec = MatrixSpec((2, 2), "float64")
    weight = torch.full((2, 2), 1e300, dtype=torch.float64)
    tensors = MD.decompose(weight, spec)
    MD.retract(tensors, spec)
    assert torch.equal(MD.compose(tensors, spec), weight)


def test_many_are_brought_back_as_each_by_itself() -> None:
    """Of two dtypes, one in several blocks, and two that stay: of zeros, and of a norm of 0."""
    torch.manual_seed(5)
    many = []
    for shape, dtype, factor, held in (
        ((3, 4), torch.float32, 2.0, 1.5),
        ((600, 700), torch.float32, 0.5, 40.0),
        ((2, 2), torch.float32, 0.0, 1.0),
        ((5, 2), torch.float64, 7.0, 0.25),
        ((4, 4), torch.float64, 3.0, 0.0),
    ):
        matrix, norm = torch.randn(shape, dtype=dtype) * factor, torch.full((1,), held, dtype=dtype)
        gains = torch.zeros(shape[0], 1, dtype=dtype), torch.zeros(1, shape[1], dtype=dtype)
        many.append(((*gains, matrix, norm), MatrixSpec(shape, str(dtype)[6:])))
    before = [tensors[2].double().numpy().copy() for tensors, _ in many]
    MD.retract_all(many)
    for (tensors, _), was in zip(many, before, strict=True):
        found, held = np.linalg.norm(was), float(tensors[3])
        wanted = was * (held / found if found and held else 1.0)
        # The scale and its product are rounded once each.
        eps = torch.finfo(tensors[2].dtype).eps
        np.testing.assert_allclose(tensors[2].double().numpy(), wanted, rtol=2 * eps, atol=0)


def test_the_gain_is_softplus() -> None:
    """Against the textbook form in float64, far from the start too."""
    t = torch.linspace(-12, 12, 49, dtype=torch.float64)
    spec = MatrixSpec((49, 1), "float64")
    ones = torch.ones(49, 1, dtype=torch.float64)
    tensors = (t[:, None], torch.zeros(1, 1).double(), ones, torch.ones(1).double())
    found = MD.compose(tensors, spec).numpy()[:, 0]
    np.testing.assert_allclose(found, np.log1p((np.e - 1) * np.exp(t.numpy())), rtol=1e-9)


class ByHand:
    """Raw gains s, a matrix and its norm; gradients from dL/dW, steps of SGD or AdamW."""

    def __init__(self, weight: np.ndarray, kind: str) -> None:
        self.kind, self.shape = kind, weight.shape
        matrix = weight.reshape(len(weight), -1)
        start = np.log(np.e - 1)
        self.parts = [
            np.full((len(matrix), 1), start),
            np.full((1, matrix.shape[1]), start),
            matrix.copy(),
        ]
        self.norm = np.sqrt((matrix**2).sum())
        self.moments = [(np.zeros_like(p), np.zeros_like(p)) for p in self.parts]
        self.count = 0

    def weight(self) -> np.ndarray:
        r, c = (np.log1p(np.exp(s)) for s in self.parts[:2])
        return (r * self.parts[2] * c).reshape(self.shape)

    def step(self, gradient: np.ndarray) -> None:
        g, (s_r, s_c, matrix) = gradient.reshape(self.parts[2].shape), self.parts
        r, c = np.log1p(np.exp(s_r)), np.log1p(np.exp(s_c))
        slopes = [
            (matrix * g * c).sum(1, keepdims=True) / (1 + np.exp(-s_r)),
            (matrix * g * r).sum(0, keepdims=True) / (1 + np.exp(-s_c)),
            r * g * c,
        ]
        self.count += 1
        for k, slope in enumerate(slopes):
            self.parts[k] = self.parts[k] - LR * self._direction(k, slope)
        self.parts[2] *= self.norm / np.sqrt((self.parts[2] ** 2).sum())

    def _direction(self, k: int, slope: np.ndarray) -> np.ndarray:
        if self.kind == "SGD":
            return slope
        first, second = self.moments[k]
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        self.moments[k] = first, second
        root = np.sqrt(second / (1 - 0.999**self.count)) + 1e-8
        return first / (1 - 0.9**self.count) / root


def by_hand(kind: str) -> tuple[nn.Module, dict[str, ByHand]]:
    """A plain network whose weights are stepped by hand, the biases with them."""
    model = network()
    hands = {k: ByHand(model.get_parameter(k).detach().numpy(), kind) for k in KEYS}
    others = [p for k, p in model.named_parameters() if k not in KEYS]
    optimizer = getattr(torch.optim, kind)(others, lr=LR, weight_decay=0.0)
    for _ in range(STEPS):
        model.zero_grad()
        model(X).square().mean().backward()
        for key, hand in hands.items():
            weight = model.get_parameter(key)
            assert weight.grad is not None
            hand.step(weight.grad.numpy())
            with torch.no_grad():
                weight.copy_(torch.from_numpy(hand.weight()))
        optimizer.step()
    return model, hands


def trained(model: nn.Module, optimizer: Any, after: Any = lambda: None) -> None:
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()
        after()


def close(found: Any, wanted: nn.Module) -> None:
    for key, value in wanted.state_dict().items():
        torch.testing.assert_close(found.state_dict()[key], value, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_the_steps_are_those_by_hand(kind: str, decay: float) -> None:
    """With decay of the weight too: it leaves the weights that hold a norm out."""
    wanted, hands = by_hand(kind)
    model = network()
    plan = opdf.plan(model, parametrization="md", min_size=1)
    groups = [
        {"params": [p for k, p in model.named_parameters() if k in KEYS], "weight_decay": decay},
        {"params": [p for k, p in model.named_parameters() if k not in KEYS], "weight_decay": 0.0},
    ]
    opt = opdf.Overparam(groups, getattr(torch.optim, kind), plan=plan, module=model, lr=LR)
    trained(model, opt)
    close(model, wanted)
    close(opdf.fold(opt), wanted)
    for key, hand in hands.items():
        matrix, norm = opt.program.cores(key)[2:]
        assert float(norm) == pytest.approx(hand.norm, rel=1e-14)
        assert float(matrix.detach().norm()) == pytest.approx(hand.norm, rel=1e-14)
    loose = network()
    gains = opdf.plan(loose, parametrization="gains", min_size=1)
    trained(loose, opdf.Overparam(loose, getattr(torch.optim, kind), plan=gains, lr=LR))
    apart = loose.get_parameter(KEYS[1]) - wanted.get_parameter(KEYS[1])
    assert float(apart.detach().abs().max()) > 1e-4, "the control"


def test_a_bare_program_holds_the_norm_in_refresh() -> None:
    wanted, _hands = by_hand("SGD")
    model = network()
    program = opdf.hoist(model, opdf.plan(model, parametrization="md", min_size=1))
    inner = torch.optim.SGD(program.parameters(), lr=LR)
    for _ in range(STEPS):
        program.zero_grad()
        model(X).square().mean().backward()
        program.backward()
        inner.step()
        program.refresh()
    close(model, wanted)
    (matrix, norm) = program.cores(KEYS[0])[2:]
    with torch.no_grad():
        matrix.mul_(2.0)
    program.retract()
    assert float(matrix.detach().norm()) == pytest.approx(float(norm), rel=1e-14)


def test_the_inline_form_with_retract(tmp_path: Path) -> None:
    wanted, hands = by_hand("SGD")
    traced = opdf.trace(network(), (X,))
    inline = opdf.expand(traced, opdf.plan(traced, parametrization="md", min_size=1))
    assert [core.requires_grad for core in inline.cores(KEYS[0])] == [True, True, True, False]
    counted = {id(p) for p in inline.clip_norm_parameters()}
    assert [id(core) in counted for core in inline.cores(KEYS[0])] == [False, False, True, False]
    trained(inline, torch.optim.SGD(inline.parameters(), lr=LR), inline.retract)
    folded = opdf.fold(inline)
    assert isinstance(folded, nn.Sequential)
    close(folded, wanted)
    assert float(inline.cores(KEYS[1])[3]) == pytest.approx(hands[KEYS[1]].norm, rel=1e-14)
    for kind in ("pt2", "safetensors"):
        save_expanded(inline, tmp_path / f"trained.{kind}")
        state = fold_file(tmp_path / f"trained.{kind}").state
        for key, value in folded.state_dict().items():
            torch.testing.assert_close(state[key], value, rtol=1e-12, atol=1e-13)


def optimizer_of(model: nn.Module, **options: Any) -> opdf.Overparam:
    plan = opdf.plan(model, parametrization="md", min_size=1)
    return opdf.Overparam(model, torch.optim.AdamW, plan=plan, lr=LR, **options)


def test_absorb_takes_the_new_norm() -> None:
    model = network()
    opt = optimizer_of(model)
    trained(model, opt)
    with torch.no_grad():
        model.get_parameter(KEYS[1]).mul_(2.0)
    assert opt.absorb() == (KEYS[1],)
    norm = float(opt.program.cores(KEYS[1])[3])
    assert norm == pytest.approx(float(model.get_parameter(KEYS[1]).norm()), rel=1e-14)
    trained(model, opt)
    assert float(opt.program.cores(KEYS[1])[2].norm()) == pytest.approx(norm, rel=1e-14)


def test_a_weight_of_zeros_is_not_held() -> None:
    model = network()
    with torch.no_grad():
        model.get_parameter(KEYS[1]).zero_()
    opt = optimizer_of(model)
    trained(model, opt)
    weight: Tensor = model.get_parameter(KEYS[1]).detach()
    assert bool(torch.isfinite(weight).all()) and float(weight.norm()) > 0.01


@pytest.mark.parametrize("batched", [False, True])
def test_nothing_steps_the_norm(batched: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    plan = opdf.plan(model, parametrization="md", min_size=1)
    opt = opdf.Overparam(model, torch.optim.SGD, plan=plan, lr=0.1, batched=batched)
    held = [p for group in opt.inner.param_groups for p in group["params"]]
    assert sum(p.numel() for p in held) == 2 * (8 + 8 + 64) + 16
    assert all(p.requires_grad for p in held)
    model(torch.randn(4, 8)).square().mean().backward()
    opt.step()
    for key in ("0.weight", "2.weight"):
        matrix, norm = opt.program.cores(key)[2:]
        assert float(matrix.norm()) == pytest.approx(float(norm), rel=1e-6)


def test_it_has_one_form() -> None:
    with pytest.raises(PlanError, match="md has 4 tensors, found cores=3; leave cores out"):
        MD.propose(WeightForm((4, 3)), cores=3)
