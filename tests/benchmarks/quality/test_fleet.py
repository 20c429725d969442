"""A row of a fleet is a run of `opdf.Overparam`, or of torch's own optimizer."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from quality import forms
from quality.fleet import TEMPERATURE, Fleet, Settings, schedule
from quality.methods import form_of
from quality.networks import Cnn, Mlp, convolve, seeded
from quality.tasks import Part
from quick import quick
from torch import Tensor, nn

import opdf_compile as opdf

STEPS, BATCH = 6, 8
# Rate, lr wd, momentum and share of the teacher of three replicas.
OPTIONS = ((0.05, 1e-2, 0.9, 0.9), (0.01, 0.0, 0.5, 0.0), (0.2, 1e-3, 0.8, 0.5))
# Powers of ten for AdamW: its steps are not proportional to the gradient.
SCALE = {"sgd": 1.0, "adamw": 0.1}


def student(kind: str) -> nn.Module:
    make = (lambda: Mlp(16, 4, 12)) if kind == "mlp" else (lambda: Cnn(16, 2, 4, 8))
    return seeded(make, 3).double()


def data(kind: str) -> Part:
    generator = torch.Generator().manual_seed(5)
    shape = (40, 16, 1) if kind == "mlp" else (40, 16, 2)
    inputs = torch.randn(shape, generator=generator, dtype=torch.float64)
    teacher = 3 * torch.randn(40, 4, generator=generator, dtype=torch.float64)
    return Part(inputs, torch.randint(4, (40,), generator=generator), teacher)


def orders() -> Tensor:
    generator = torch.Generator().manual_seed(6)
    return torch.randint(40, (STEPS, len(OPTIONS), BATCH), generator=generator)


def trained_fleet(kind: str, form: forms.Form, optimizer: str) -> Fleet:
    columns = [torch.tensor(c, dtype=torch.float64) for c in zip(*OPTIONS, strict=True)]
    columns[0] = columns[0] * SCALE[optimizer]
    weights = {k: p.detach() for k, p in student(kind).named_parameters()}
    fleet = Fleet(
        student(kind),
        form,
        torch.stack([form.start(weights)] * len(OPTIONS)),
        Settings(*(*columns, torch.arange(len(OPTIONS)))),
        data(kind),
        optimizer=optimizer,
        steps=STEPS,
    )
    fleet.run(orders())
    return fleet


def looped(kind: str, replica: int, optimizer: str, options: dict[str, object] | None) -> nn.Module:
    """The loop that a user writes; plain where there are no options of Overparam."""
    module, part = student(kind), data(kind)
    rate, decay, momentum, share = OPTIONS[replica]
    rate *= SCALE[optimizer]
    made = {"momentum": momentum} if optimizer == "sgd" else {"betas": (momentum, 0.999)}
    chosen = torch.optim.SGD if optimizer == "sgd" else torch.optim.AdamW
    planned = {e.key for e in opdf.plan(module, cores=2).entries}
    named = dict(module.named_parameters())
    matrices = [p for k, p in named.items() if k in planned]
    # SGD's own decay is not decoupled, so the small matrices that have no cores decay by hand.
    small = [p for k, p in named.items() if k not in planned and p.ndim > 1]
    others = [p for k, p in named.items() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": decay / rate}, {"params": small + others}]
    if options is not None:
        opt = opdf.Overparam(
            groups, chosen, module=module, lr=rate, weight_decay=0.0, **made, **options
        )
    else:
        groups[0]["weight_decay"] = 0.0
        opt = chosen(groups, lr=rate, weight_decay=0.0, **made)
    for step in range(STEPS):
        factor = schedule(step, STEPS)
        for group in opt.param_groups:
            group["lr"] = rate * factor
        places = orders()[step, replica]
        opt.zero_grad()
        logits = module(part.inputs[places])
        soft = F.kl_div(
            F.log_softmax(logits / TEMPERATURE, 1),
            F.log_softmax(part.teacher[places] / TEMPERATURE, 1),
            reduction="batchmean",
            log_target=True,
        )
        hard = F.cross_entropy(logits, part.labels[places])
        ((1 - share) * hard + share * TEMPERATURE**2 * soft).backward()
        with torch.no_grad():
            for matrix in small + (matrices if options is None else []):
                matrix.mul_(1 - factor * decay)
        opt.step()
    return module


CASES = {
    "plain": (forms.plain, None),
    "mpo": (lambda s: forms.package(s, "mpo", 3), {"cores": 3}),
    "svd": (lambda s: forms.package(s, "svd", 2), "svd"),
}


@pytest.mark.parametrize("optimizer", quick(["sgd", "adamw"], {"adamw"}))
@pytest.mark.parametrize("kind", ["mlp", "cnn"])
@pytest.mark.parametrize("name", CASES)
def test_a_replica_is_a_run_of_the_product(name: str, kind: str, optimizer: str) -> None:
    make, options = CASES[name]
    if options == "svd":
        options = {"plan": opdf.plan(student(kind), cores=2, parametrization="svd")}
    fleet = trained_fleet(kind, make(student(kind)), optimizer)
    for replica in range(len(OPTIONS)):
        wanted = dict(looped(kind, replica, optimizer, options).named_parameters())
        for key, found in fleet.weights().items():
            torch.testing.assert_close(found[replica], wanted[key].detach(), rtol=1e-9, atol=1e-9)
    other = dict(looped(kind, 1, optimizer, options).named_parameters())["head.weight"]
    assert not torch.allclose(fleet.weights()["head.weight"][0], other, atol=1e-4)


@pytest.mark.parametrize("name", ["plain", "mpo", "svd", "wide", "powerprop"])
@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_every_form_starts_from_the_students_own_weights(name: str, kind: str) -> None:
    module = student(kind)
    form = form_of(name, module)
    weights = {k: p.detach() for k, p in module.named_parameters()}
    for key, found in form.weights(form.start(weights)).items():
        torch.testing.assert_close(found, weights[key], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["mpo", "svd", "wide", "powerprop"])
def test_decay_of_the_tensors_is_decay_of_the_weight(name: str) -> None:
    module = student("mlp")
    form = form_of(name, module)
    weights = {k: p.detach() for k, p in module.named_parameters()}
    exponents = form.per_entry(lambda leaf: leaf.exponent)
    decayed = form.weights(form.start(weights) * 0.9**exponents)
    torch.testing.assert_close(decayed["second.weight"], 0.9 * weights["second.weight"])
    torch.testing.assert_close(decayed["second.bias"], weights["second.bias"])


def test_frozen_middle_cores_are_the_chain_of_two() -> None:
    frozen = trained_fleet("mlp", forms.package(student("mlp"), "mpo", 3, frozen=True), "sgd")
    two = trained_fleet("mlp", forms.package(student("mlp"), "mpo", 2), "sgd")
    three = trained_fleet("mlp", forms.package(student("mlp"), "mpo", 3), "sgd")
    for key, found in frozen.weights().items():
        torch.testing.assert_close(found, two.weights()[key], rtol=1e-9, atol=1e-12)
    assert not torch.allclose(three.weights()["second.weight"], two.weights()["second.weight"])


def test_patches_are_the_convolution() -> None:
    conv = nn.Conv1d(3, 5, 5, stride=2, padding=2).double()
    inputs = torch.randn(4, 17, 3, dtype=torch.float64)
    wanted = conv(inputs.mT).mT
    torch.testing.assert_close(convolve(inputs, conv), wanted)
    other = copy.deepcopy(conv)
    other.weight.data.mul_(1.01)
    assert not torch.allclose(convolve(inputs, other), wanted)


def test_a_replica_that_diverged_scores_nothing() -> None:
    fleet = trained_fleet("mlp", forms.plain(student("mlp")), "sgd")
    fleet.flat[1] = torch.nan
    accuracy, apart = fleet.scores(data("mlp"))
    assert (accuracy[1], apart[1]) == (0.0, torch.inf)
    assert torch.isfinite(apart[[0, 2]]).all()
