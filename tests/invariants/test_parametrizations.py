"""Every parametrization through every form: inline, hoisted, files, checkpoints, export.

The MPO has its own files; here all registered ones must do what it does on one small network with a
convolution, a batch norm, a linear layer and a tied pair.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from quick import quick
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.errors import FoldError, PlanError
from opdf_compile.io.saved.core_folding import fold_state
from opdf_compile.io.saved.expanded_file import fold_file, save_expanded
from opdf_compile.parametrizations import registry

# Those whose decay of W is refused, because a part of it is not trained.
FROZEN = (
    "delta(base=frozen)",
    "spectral(residual=frozen)",
)
# Those without cores have no inline form, and tests of their own in tests/training/metric.
CORED = (n for n in registry.registered_names() if not registry.registered(n).metric)
NAMES = (*CORED, "orepa(start=paper)", "spectral(residual=none)", *FROZEN)
# Of these the shapes alone do not tell all.
UNTOLD = {
    "powerprop": "do not tell the exponent of powerprop",
    "spectral(residual=none)": "4 matrices of 16 x 16 may be a residual and a chain",
}
# In every run those whose tensors differ in kind: an option changes what one of these shows little.
VARIANTS = ("svd", "orepa(start=paper)", "spectral(residual=none)", "delta(base=frozen)")
named = pytest.mark.parametrize("name", quick(NAMES, set(NAMES) - set(VARIANTS)))
WEIGHTS = ("convolution.weight", "first.weight", "second.weight")


KERNELS_ONLY = ("do_conv", "orepa", "orepa(start=paper)")


def planned(name: str) -> tuple[str, ...]:
    """The weights of the student that it takes."""
    return WEIGHTS[:1] if name in KERNELS_ONLY else WEIGHTS


def adam(model: nn.Module, name: str, lr: float) -> opdf.Overparam:
    """With weight decay, as AdamW has it by default."""
    rule: Any = {"decay": "cores"} if name in FROZEN else {}
    return opdf.Overparam(model, torch.optim.AdamW, plan=plan_of(model, name), lr=lr, **rule)


class Student(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(2, 8, 3, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.first = nn.Linear(8 * 4, 16)
        self.second = nn.Linear(16, 16)
        self.third = nn.Linear(16, 16)
        self.third.weight = self.second.weight

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.norm(self.convolution(x))).flatten(1)
        return self.third(torch.tanh(self.second(torch.tanh(self.first(hidden)))))


X = torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def student(dtype: torch.dtype = torch.float64) -> Student:
    torch.manual_seed(0)
    return Student().to(dtype)


def plan_of(model: nn.Module | opdf.Traced, name: str) -> opdf.Plan:
    plan = opdf.plan(model, parametrization=name)
    assert {entry.key for entry in plan.entries} == set(planned(name))
    assert {entry.parametrization for entry in plan.entries} == {name.partition("(")[0]}
    return plan


def train(model: Any, optimizer: Any, steps: int = 3) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()
        if isinstance(model, opdf.Expanded):
            model.retract()


def groups_of(expanded: opdf.Expanded, lr: float) -> list[dict[str, Any]]:
    """What a user of the inline form writes to give each core its own rate."""
    rate_of = {
        name: rate
        for entry in expanded.plan.entries
        for name, rate in zip(entry.core_names, entry.rates, strict=True)
    }
    return [
        {"params": [p], "lr": lr * rate_of.get(name, 1.0)}
        for name, p in expanded.named_parameters()
    ]


@pytest.fixture(scope="module")
def traced() -> opdf.Traced:
    return opdf.trace(student(), (X,))


# The MPO's own trajectories are tested at length elsewhere, and svd is an MPO of two cores.
@pytest.mark.parametrize("name", quick(NAMES, set(NAMES) - {"mpo", "svd", "orepa(start=paper)"}))
def test_both_forms_train_alike_and_fold(name: str, traced: opdf.Traced, tmp_path: Path) -> None:
    model = student()
    plan = plan_of(traced, name)
    plan.save(tmp_path / "plan.json")
    # The file names what was left alone, and why, without its shape.
    left = tuple(replace(refusal, shape=()) for refusal in plan.refusals)
    assert opdf.Plan.load(tmp_path / "plan.json") == replace(plan, refusals=left)
    inline = opdf.expand(traced, plan)
    untouched = copy.deepcopy(model.state_dict())
    assert all(torch.equal(v, untouched[k]) for k, v in model.state_dict().items())
    unfolded = opdf.fold(inline).state_dict()
    for key, value in untouched.items():
        torch.testing.assert_close(unfolded[key], value, rtol=1e-12, atol=1e-13)
    hoisted = opdf.Overparam(model, torch.optim.SGD, plan=plan, lr=0.05, momentum=0.9)
    train(inline, torch.optim.SGD(groups_of(inline, 0.05), momentum=0.9))
    train(model, hoisted)
    folded = opdf.fold(inline)
    assert type(folded) is Student
    assert folded.third.weight is folded.second.weight
    # The same trajectory within rounding, and not the one of another rate.
    for key, value in opdf.fold(hoisted).state_dict().items():
        torch.testing.assert_close(folded.state_dict()[key], value, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(model.state_dict()[key], value, rtol=1e-9, atol=1e-10)
    key = planned(name)[-1]
    trained = folded.state_dict()[key]
    assert (trained - untouched[key]).abs().max() > 1e-4
    other = student()
    train(other, opdf.Overparam(other, torch.optim.SGD, plan=plan, lr=0.06, momentum=0.9))
    assert (other.state_dict()[key] - trained).abs().max() > 1e-5, "the control"
    alone(name, inline, folded)


def alone(name: str, inline: opdf.Expanded, folded: nn.Module) -> None:
    """Out of the tensors and the student, without a plan."""
    tensors = {key: value.detach() for key, value in inline.state_dict().items()}
    if name in UNTOLD:
        with pytest.raises(FoldError, match=UNTOLD[name]):
            fold_state(tensors, None, folded)
        return
    require_equal(fold_state(tensors, None, folded), folded)


def require_equal(state: dict[str, Tensor], folded: nn.Module) -> None:
    assert set(state) == set(folded.state_dict())
    for key, value in folded.state_dict().items():
        torch.testing.assert_close(state[key], value, rtol=1e-12, atol=1e-13)


# In every run those of md, in test_md.py, and tensors alone, above.
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_files(name: str, traced: opdf.Traced, tmp_path: Path) -> None:
    inline = opdf.expand(traced, plan_of(traced, name))
    with torch.no_grad():
        for parameter in inline.parameters():
            parameter.add_(0.01)
    folded = opdf.fold(inline)
    assert isinstance(folded, nn.Module)
    for kind in ("pt2", "safetensors"):
        save_expanded(inline, tmp_path / f"trained.{kind}")
        require_equal(fold_file(tmp_path / f"trained.{kind}").state, folded)


@pytest.mark.parametrize(
    "name", quick(NAMES, {"md", "mpo", "orepa", "shared", "spectral(residual=frozen)"})
)
def test_a_checkpoint_resumes_bit_for_bit(name: str, tmp_path: Path) -> None:
    runs = []
    for interrupted in (False, True):
        model = student(torch.float32)
        opt = adam(model, name, 0.01)
        loss = X.float()
        for step in range(4):
            opt.zero_grad()
            model(loss).square().mean().backward()
            opt.step()
            if interrupted and step == 1:
                opdf.save_checkpoint(tmp_path / "run", opt, step=step)
                torch.manual_seed(9)
                model = Student()
                opt = adam(model, name, 0.5)
                found = opdf.latest_checkpoint(tmp_path / "run")
                assert found is not None
                opdf.load_checkpoint(found, opt)
        runs.append(copy.deepcopy(model.state_dict()))
    assert all(torch.equal(value, runs[1][key]) for key, value in runs[0].items())
    key = planned(name)[-1]
    assert not torch.equal(runs[0][key], student(torch.float32).state_dict()[key])


@pytest.mark.parametrize("name", [name for name in NAMES if name not in FROZEN])
def test_weight_decay_is_that_of_the_weight(name: str) -> None:
    """AdamW decays by default, so every parametrization must be able to."""
    model = student()
    key = planned(name)[-1]
    start = model.state_dict()[key].clone()
    opt = opdf.Overparam(
        model, torch.optim.AdamW, plan=plan_of(model, name), lr=0.1, weight_decay=0.3
    )
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    opt.step()
    # What holds a norm is left out.
    kept = 1.0 if name == "md" else 0.97
    torch.testing.assert_close(model.state_dict()[key], start * kept, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", FROZEN)
def test_decay_of_a_weight_that_is_trained_in_part_is_refused(name: str) -> None:
    model = student()
    with pytest.raises(PlanError, match="of 'convolution.weight' a part is frozen; give decay='co"):
        opdf.Overparam(model, torch.optim.AdamW, plan=plan_of(model, name), weight_decay=0.1)
    opt = opdf.Overparam(model, torch.optim.AdamW, plan=plan_of(model, name), weight_decay=0.0)
    for group in opt.param_groups:
        group["weight_decay"] = 0.1
    with pytest.raises(PlanError, match="or weight_decay=0"):
        opt.step()


@pytest.mark.parametrize("name", quick(NAMES, {"md", "orepa", "spectral(residual=frozen)"}))
def test_what_is_not_trained_stays_and_is_kept(
    name: str, traced: opdf.Traced, tmp_path: Path
) -> None:
    """In both forms and in files: no gradient, no step, no state, and its bits as they were."""
    inline = opdf.expand(traced, plan_of(traced, name))
    still = {core for entry in inline.plan.entries for core in entry.untrained}
    assert {n for n, p in inline.named_parameters() if not p.requires_grad} == still
    before = {n: p.detach().clone() for n, p in inline.named_parameters()}
    optimizer = torch.optim.SGD(inline.parameters(), lr=0.05, momentum=0.9, weight_decay=0.1)
    train(inline, optimizer)
    assert {n for n, p in inline.named_parameters() if torch.equal(p, before[n])} >= still
    counted = {id(p) for p in inline.clip_norm_parameters()}
    assert all(id(p) not in counted for n, p in inline.named_parameters() if n in still)
    model = student()
    hoisted = opdf.Overparam(model, torch.optim.SGD, plan=inline.plan, lr=0.05, momentum=0.9)
    program = hoisted.program
    train(model, hoisted)
    held = {n: core for unit in program.units for n, core in unit.named_cores().items()}
    assert all(torch.equal(held[n], before[n]) for n in still)
    size = sum(p.numel() for p in program.parameters())
    matched = set(program.matched().values())
    others = sum(p.numel() for p in model.parameters() if p not in matched)
    assert size == inline.plan.cost.parameters + others
    assert sum(held[n].numel() for n in still) == inline.plan.cost.untrained
    kept = [k for state in hoisted.inner.state_dict()["state"].values() for k in state]
    assert len(kept) == sum(1 for p in program.parameters())
    if not still:
        return
    save_expanded(inline, tmp_path / "trained.pt2")
    loaded = torch.export.load(tmp_path / "trained.pt2").module()
    assert {n for n, p in loaded.named_parameters() if not p.requires_grad} == still


@named
def test_small_weights_of_one_form_are_batched(name: str) -> None:
    models = []
    for batched in (False, True):
        torch.manual_seed(0)
        kernels = name in KERNELS_ONLY
        layers = [nn.Conv1d(6, 6, 3, padding=1) if kernels else nn.Linear(16, 16) for _ in range(3)]
        model = nn.Sequential(*layers).double()
        plan = opdf.plan(model, parametrization=name)
        opt = opdf.Overparam(model, torch.optim.Adam, plan=plan, lr=0.01, batched=batched)
        assert len(opt.program.units) == (1 if batched else 3)
        for _ in range(3):
            opt.zero_grad()
            model(X.reshape(2, 6, 16) if kernels else X.reshape(12, 16)).square().mean().backward()
            opt.step()
        models.append(model)
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


@named
@pytest.mark.parametrize("dtype", quick([torch.float16, torch.bfloat16], {torch.bfloat16}))
def test_half_students_keep_their_bits(name: str, dtype: torch.dtype) -> None:
    model = student(dtype)
    before = copy.deepcopy(model.state_dict())
    opt = opdf.Overparam(model, torch.optim.SGD, plan=plan_of(model, name), lr=0.1)
    folded = opdf.fold(opt).state_dict()
    assert all(torch.equal(value, before[key]) for key, value in folded.items())
    assert {core.dtype for core in opt.program.cores(planned(name)[-1])} == {torch.float32}


@pytest.mark.slow
@named
def test_what_is_exported_is_the_untouched_students_graph(name: str, tmp_path: Path) -> None:
    model = student(torch.float32).train()
    untouched = copy.deepcopy(model)
    opt = adam(model, name, 0.01)
    model(X.float()).square().mean().backward()
    opt.step()
    bundle = tmp_path / "bundle"
    opdf.export_onnx(opdf.fold(opt).eval(), (X.float(),), f"{bundle}/", reference=untouched.eval())
    report = opdf.verify(f"{bundle}/", only=("structure", "numerics"))
    assert report, str(report)
