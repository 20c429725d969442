"""PEFT freezes the weights under its adapters; cores would not be trained, so it is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import compare
import pytest
import torch
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.errors import InputError

DOORS: dict[str, Callable[[nn.Module, opdf.Plan], object]] = {
    "Overparam": lambda model, _plan: opdf.Overparam(model, torch.optim.SGD, lr=0.1, cores=3),
    "Overparam of parameters": lambda model, plan: opdf.Overparam(
        [p for p in model.parameters() if p.requires_grad], lr=0.1, plan=plan, module=model
    ),
    "hoist": opdf.hoist,
    "hoist without a plan": lambda model, _plan: opdf.hoist(model),
    "overparam_class": lambda model, plan: opdf.overparam_class(model, plan),
}


def wrapped(student: nn.Module) -> Any:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        target_modules=["query", "value"], r=2, lora_alpha=8, init_lora_weights=False
    )
    return get_peft_model(student, config)  # type: ignore[arg-type]


@pytest.mark.parametrize("door", DOORS)
def test_a_wrapped_student_is_refused(door: str, bert: Callable[..., nn.Module]) -> None:
    plan = opdf.plan(bert(), cores=3)
    with pytest.raises(InputError, match=r"wrapped by PEFT .* call merge_and_unload\(\) first"):
        DOORS[door](wrapped(bert()), plan)


@pytest.mark.parametrize("door", DOORS)
def test_the_plain_student_is_not(door: str, bert: Callable[..., nn.Module]) -> None:
    student = bert()
    DOORS[door](student, opdf.plan(student, cores=3))


def test_the_student_under_the_wrapper_is_refused_too(bert: Callable[..., nn.Module]) -> None:
    # Adapters are put into the student itself, so taking it out of the wrapper is not enough.
    student = bert()
    wrapped(student)
    with pytest.raises(InputError, match=r"call merge_and_unload\(\) first"):
        opdf.Overparam(student, lr=0.1)


def test_after_merging_it_trains(
    bert: Callable[..., nn.Module], sentences: list[dict[str, Tensor]]
) -> None:
    student = bert()
    start = compare.weights(student)
    merged = wrapped(student).merge_and_unload()
    key = "bert.encoder.layer.0.attention.self.query.weight"
    assert compare.equal(list(merged.state_dict()), list(start))
    assert not torch.equal(merged.state_dict()[key], start[key])

    # Merging leaves what PEFT froze frozen; the message's remedy and this line make it trainable.
    merged.requires_grad_(True)
    opt = opdf.Overparam(merged, torch.optim.SGD, lr=0.1, cores=3)
    assert {entry.key for entry in opt.plan.entries} == {
        entry.key for entry in opdf.plan(bert(), cores=3).entries
    }
    before = compare.weights(merged)
    batch = {name: torch.stack([row[name] for row in sentences]) for name in sentences[0]}
    losses = []
    for _ in range(5):
        opt.zero_grad()
        loss = merged(**batch).loss
        loss.backward()
        opt.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    after = compare.weights(opdf.fold(opt))
    assert not torch.equal(after[key], before[key])
    assert list(after) == list(start)
