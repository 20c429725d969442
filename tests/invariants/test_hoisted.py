"""The invariants of the design that speak of weights, in the hoisted form, from the public face.

Numbers as in test_invariants.py; each check is tried on a wrong answer too.
"""

from __future__ import annotations

import copy
import hashlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from quick import covering
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.errors import DeviceError, WeightsChanged
from opdf_compile.training.hoisted.binding import Bound


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def low_rank() -> Tensor:
    return torch.randn(24, 2, generator=generator()) @ torch.randn(2, 36, generator=generator())


WEIGHTS: dict[str, Callable[[], Tensor]] = {
    "random": lambda: torch.randn(24, 36, generator=generator()),
    "zero": lambda: torch.zeros(24, 36),
    "constant": lambda: torch.full((24, 36), 0.3),
    "identity": lambda: torch.eye(36),
    "rank deficient": low_rank,
    "tiny": lambda: torch.randn(24, 36, generator=generator()) * 1e-30,
    "huge": lambda: torch.randn(24, 36, generator=generator()) * 1e30,
    "prime sizes": lambda: torch.randn(23, 37, generator=generator()),
}


def linear(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False).to(weight.dtype)
    layer.weight.data.copy_(weight)
    return layer


def product(cores: tuple[Tensor, ...]) -> np.ndarray[Any, Any]:
    """The chain multiplied out in float64 by numpy, (rows, columns)."""
    chain = np.ones((1, 1, 1))
    for core in cores:
        chain = np.einsum("rcl,lijb->ricjb", chain, core.detach().double().numpy())
        rows, i, columns, j, bond = chain.shape
        chain = chain.reshape(rows * i, columns * j, bond)
    return chain[..., 0]


def require_lossless(cores: tuple[Tensor, ...], weight: Tensor) -> None:
    wanted = weight.double().numpy()
    error = np.linalg.norm(product(cores) - wanted)
    assert np.isfinite(error)
    assert error <= 1e-6 * np.linalg.norm(wanted)


@pytest.mark.parametrize(("name", "cores"), covering(WEIGHTS, [2, 3, 5]))
def test_invariant_1_hoist_is_lossless(name: str, cores: int) -> None:
    weight = WEIGHTS[name]()
    layer = linear(weight)
    opt = opdf.Overparam(layer, cores=cores, lr=0.1)
    require_lossless(opt.program.cores("weight"), weight)
    assert torch.equal(layer.weight, weight), "bit for bit until the first refresh"
    opt.program.refresh()
    assert torch.isfinite(layer.weight).all()
    error = (layer.weight - weight).double().norm()
    assert error <= 1e-6 * weight.double().norm()
    if name not in ("zero", "tiny"):
        with pytest.raises(AssertionError):
            require_lossless(opt.program.cores("weight"), weight * 1.01)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_invariant_1_cores_of_half_weights_are_float32(dtype: torch.dtype) -> None:
    weight = WEIGHTS["random"]().to(dtype)
    layer = linear(weight)
    opt = opdf.Overparam(layer, torch.optim.SGD, cores=3, lr=1e-4)
    assert {core.dtype for core in opt.program.cores("weight")} == {torch.float32}
    require_lossless(opt.program.cores("weight"), weight)
    # Steps too small for the weight's own dtype add up in the cores.
    plain = nn.Parameter(torch.ones_like(weight))
    layer = linear(torch.ones_like(weight))
    ours = opdf.Overparam(layer, torch.optim.SGD, cores=3, lr=1e-6)
    theirs = torch.optim.SGD([plain], lr=1e-6)
    for _ in range(100):
        layer.weight.grad, plain.grad = torch.ones_like(weight), torch.ones_like(weight)
        ours.step()
        theirs.step()
    assert torch.equal(plain, torch.ones_like(weight)), "the control: each step rounds to nothing"
    assert (layer.weight < 1).all()
    assert layer.weight.dtype == dtype
    wanted = torch.from_numpy(product(ours.program.cores("weight"))).to(dtype)
    assert (layer.weight != wanted).float().mean() < 0.01, "one cast, at the end"


def test_invariant_2_fold_is_exact() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 36), nn.LayerNorm(36), nn.Linear(36, 8))
    plan = opdf.plan(model, cores=3, exclude=["2.weight"])
    before = copy.deepcopy(model.state_dict())
    opt = opdf.Overparam(model, plan=plan)
    folded = opdf.fold(opt)
    difference = (folded[0].weight - before["0.weight"]).abs()
    assert torch.all(difference <= 4e-7 * before["0.weight"].abs().max())
    for name in ("0.bias", "1.weight", "1.bias", "2.weight", "2.bias"):
        assert torch.equal(folded.state_dict()[name], before[name]), name
    # The weight is the float64 product rounded once, not a float32 product.
    with torch.no_grad():
        for core in opt.program.cores("0.weight"):
            core.add_(torch.randn_like(core))
    opt.program.refresh()
    wanted = product(opt.program.cores("0.weight")).astype(np.float32)
    found = opdf.fold(opt)[0].weight.detach().numpy()
    assert np.mean(found == wanted) > 0.999
    assert np.mean(model[0].weight.detach().numpy() == wanted) < 0.999, "the control: float32"


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 16)
        self.norm = nn.BatchNorm1d(16)
        self.frozen_norm = nn.BatchNorm1d(16)
        self.body = nn.Linear(16, 16)
        self.fixed = nn.Linear(16, 16).requires_grad_(False)
        self.head = nn.Linear(16, 40, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.table(ids).transpose(1, 2)
        hidden = self.frozen_norm(self.norm(hidden)).transpose(1, 2)
        return self.head(self.fixed(torch.relu(self.body(hidden))))


def trained(model: nn.Module, ids: Tensor, **options: Any) -> opdf.Overparam:
    plan = opdf.plan(opdf.trace(model, (ids,)), cores=3, include=["*"])
    opt = opdf.Overparam(model, torch.optim.AdamW, plan=plan, lr=0.05, **options)
    for _ in range(3):
        opt.zero_grad()
        model(ids).square().mean().backward()
        opt.step()
    return opt


def require_whole(student: nn.Module, model: nn.Module) -> None:
    """Class, keys, shapes, dtypes, ties, requires_grad, flags as in `model`."""
    assert type(student) is type(model)
    assert list(student.state_dict()) == list(model.state_dict())
    for name, value in student.state_dict().items():
        assert (value.shape, value.dtype) == (model.state_dict()[name].shape, value.dtype)
    assert student.head.weight is student.table.weight
    for (name, p), (_name, own) in zip(
        student.named_parameters(), model.named_parameters(), strict=True
    ):
        assert type(p) is nn.Parameter
        assert p.requires_grad == own.requires_grad, name
    flags = [m.training for m in student.modules()]
    assert flags == [m.training for m in model.modules()]


def test_invariant_3_the_student_comes_back_whole() -> None:
    ids = torch.randint(0, 40, (6, 3), generator=generator())
    model = Whole().train()
    model.frozen_norm.eval()
    untouched = copy.deepcopy(model)
    objects = [(name, id(p)) for name, p in model.named_parameters()]
    opt = trained(model, ids)
    assert {entry.key for entry in opt.plan.entries} == {"table.weight", "body.weight"}
    # The user's own module is the same module: objects, hooks, flags, attributes.
    assert [(name, id(p)) for name, p in model.named_parameters()] == objects
    assert vars(model).keys() == vars(untouched).keys()
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    require_whole(model, untouched)
    folded = opdf.fold(opt)
    assert folded is not model
    require_whole(folded, untouched)
    for name, value in folded.state_dict().items():
        live = model.state_dict()[name]
        if name in ("body.weight", "table.weight", "head.weight"):
            assert (value - live).abs().max() < 1e-6
            assert (value - untouched.state_dict()[name]).abs().max() > 1e-2
        else:
            assert torch.equal(value, live), name
    assert torch.equal(folded.fixed.weight, untouched.fixed.weight)
    assert torch.equal(folded.frozen_norm.running_mean, untouched.frozen_norm.running_mean)
    assert not torch.equal(folded.norm.running_mean, untouched.norm.running_mean)
    assert torch.equal(model.table(ids), nn.functional.embedding(ids, model.head.weight))
    folded.head.weight = nn.Parameter(folded.head.weight.detach().clone())
    with pytest.raises(AssertionError):
        require_whole(folded, untouched)


def test_invariant_5_a_student_that_was_moved_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    opt = opdf.Overparam(model, torch.optim.SGD, cores=3, lr=0.1, momentum=0.9)
    model(torch.randn(2, 16)).sum().backward()
    opt.step()
    before = [p.detach().clone() for p in model.parameters()]
    # Stands for `model.cuda()` after the first step, on a machine without CUDA too.
    with monkeypatch.context() as patch:
        patch.setattr(Bound, "device", torch.device("cuda", 0))
        with pytest.raises(
            DeviceError, match=r"is on cuda:0, its cores are on cpu; move the stude"
        ):
            opt.step()
    assert all(map(torch.equal, before, model.parameters()))
    assert all(p.grad is not None for p in model.parameters())
    opt.step()
    assert not torch.equal(before[0], model[0].weight)


@pytest.mark.gpu
def test_invariant_5_on_a_gpu() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    opt = opdf.Overparam(model, torch.optim.SGD, cores=3, lr=0.1, momentum=0.9)
    model.cuda()(torch.randn(2, 16, device="cuda")).sum().backward()
    opt.step()
    assert all(core.is_cuda for core in opt.program.cores("0.weight"))
    opt.zero_grad()
    model.cpu()(torch.randn(2, 16)).sum().backward()
    with pytest.raises(DeviceError, match=r"is on cpu, its cores are on cuda:0; move the stude"):
        opt.step()


DIGEST = """
import hashlib, torch, opdf_compile as opdf
torch.set_num_threads(1)
model = torch.nn.Linear(36, 24)
model.weight.data.copy_(torch.randn(24, 36, generator=torch.Generator().manual_seed(0)))
cores = opdf.Overparam(model, cores=3).program.cores("weight")
print(hashlib.sha256(b"".join(c.detach().numpy().tobytes() for c in cores)).hexdigest())
"""


def digest(cores: tuple[Tensor, ...]) -> str:
    return hashlib.sha256(b"".join(c.detach().numpy().tobytes() for c in cores)).hexdigest()


@pytest.mark.slow
def test_invariant_7_decompositions_are_deterministic() -> None:
    run = subprocess.run(
        [sys.executable, "-c", DIGEST], capture_output=True, text=True, check=True
    ).stdout.strip()
    found = set()
    for batched in (False, True):
        pair = nn.Sequential(linear(WEIGHTS["random"]()), linear(WEIGHTS["random"]()))
        opt = opdf.Overparam(pair, cores=3, batched=batched)
        found |= {digest(opt.program.cores(f"{place}.weight")) for place in (0, 1)}
        torch.randn(100)
    traced = opdf.trace(linear(WEIGHTS["random"]()), (torch.randn(2, 36),))
    found.add(digest(opdf.expand(traced, opdf.plan(traced, cores=3)).cores("weight")))
    assert found == {run}, "in any process, batched or not, inline or hoisted"
    off = linear(WEIGHTS["random"]() * 1.01)
    assert digest(opdf.Overparam(off, cores=3).program.cores("weight")) != run


SENTENCE = (
    r"2 weights changed since the last refresh \(a checkpoint was loaded, or another optimizer "
    r"stepped them\)\. Keep them: absorb\(\)\. Keep the cores: fold\(program, source='cores'\)\."
)


def loaded(model: nn.Module) -> None:
    model.load_state_dict({key: value + 1 for key, value in model.state_dict().items()})


def stepped(model: nn.Module) -> None:
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    torch.optim.SGD(model.parameters(), lr=0.1).step()


def written(model: nn.Module) -> None:
    for p in model.parameters():
        p.data.mul_(1.0001)


def two_entries_swapped(model: nn.Module) -> None:
    for layer in (model[0], model[2]):
        flat = layer.weight.data.view(-1)
        flat[[0, 1]] = flat[[1, 0]]


CHANGES = [loaded, stepped, written, two_entries_swapped]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 16))


def step(model: nn.Module, opt: opdf.Overparam) -> None:
    opt.zero_grad()
    model(torch.ones(4, 16)).square().mean().backward()
    opt.step()


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_invariant_8_a_weight_changed_from_outside_stops_everything(
    change: Callable[[nn.Module], None],
) -> None:
    model = network()
    opt = opdf.Overparam(model, torch.optim.AdamW, cores=3, lr=0.05)
    step(model, opt)
    own = copy.deepcopy(model.state_dict())
    model.zero_grad()
    change(model)
    foreign = copy.deepcopy(model.state_dict())
    state = copy.deepcopy(opt.state_by_name())
    model(torch.ones(4, 16)).square().mean().backward()
    for act in (opt.step, opt.program.refresh, lambda: opdf.fold(opt), opt.program.fold):
        with pytest.raises(WeightsChanged, match=SENTENCE):
            act()
    # Nothing is lost on either side.
    assert all(torch.equal(v, foreign[k]) for k, v in model.state_dict().items())
    for name, kept in opt.state_by_name().items():
        assert all(torch.equal(v, state[name][k]) for k, v in kept.items())
    # The two ways out of the sentence.
    cores = opdf.fold(opt, source="cores")
    assert (cores[0].weight - own["0.weight"]).abs().max() < 1e-6
    weights = opdf.fold(opt, source="weights")
    assert torch.equal(weights[0].weight, foreign["0.weight"])
    assert set(opt.absorb()) == {"0.weight", "2.weight"}
    assert torch.equal(model[0].weight, foreign["0.weight"])
    assert (opdf.fold(opt)[0].weight - foreign["0.weight"]).abs().max() < 2e-6
    step(model, opt)


def test_invariant_8_what_is_put_back_is_no_change() -> None:
    model = network()
    opt = opdf.Overparam(model, cores=3, lr=0.05)
    own = copy.deepcopy(model.state_dict())
    for change in CHANGES:
        change(model)
        model.load_state_dict(own)
        opt.program.require_unchanged()
    with torch.no_grad():
        model[0].bias.add_(1)
    step(model, opt)


def test_invariant_8_one_weight_of_many_is_named() -> None:
    model = network()
    opt = opdf.Overparam(model, cores=3, lr=0.05)
    with torch.no_grad():
        model[2].weight[0, 0] += 1e-6
    with pytest.raises(WeightsChanged, match=r"1 of 2 weights changed .*Changed: 2\.weight\."):
        step(model, opt)


def test_invariant_8_nothing_moves_before_the_first_step() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    flags = [module.training for module in model.modules()]
    opt = opdf.Overparam(model, cores=3)
    opt.summary(), opt.state_dict(), opt.fingerprints(), opdf.fold(opt), repr(opt)
    opt.load_state_dict(opt.state_dict())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [module.training for module in model.modules()] == flags
    assert all(p.grad is None for p in model.parameters())
    copy.deepcopy(model)
