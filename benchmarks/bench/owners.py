"""Which tensors belong to the cores of a form, and when their gradients exist."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from bench.forms import Form


def owned(form: Form) -> list[Tensor]:
    """Values, gradients (where there are any) and optimizer state of the cores."""
    optimizer = stepped(form)
    found: list[Tensor] = []
    for core in cores_of(form):
        state = optimizer.state.get(core, {}).values()
        found += [core, *(value for value in state if isinstance(value, Tensor))]
    return found + grads(form)


def grads(form: Form) -> list[Tensor]:
    """The cores' gradients that exist now."""
    return [core.grad for core in cores_of(form) if core.grad is not None]


def cores_of(form: Form) -> Iterator[Tensor]:
    """The tensors that hold the cores."""
    if form.name == "inline":
        yield from (p for name, p in form.model.named_parameters() if "_cores." in name)
    elif form.name != "plain":
        optimizer: Any = form.optimizer
        matched = {id(p) for p in form.model.parameters()}
        yield from (p for p in optimizer.program.parameters() if id(p) not in matched)


def stepped(form: Form) -> torch.optim.Optimizer:
    """The optimizer that steps the cores."""
    inner: torch.optim.Optimizer = getattr(form.optimizer, "inner", form.optimizer)
    return inner


def before_step(form: Form, call: Callable[[Form], object]) -> None:
    """Call when all gradients of the cores are there: just before they are stepped."""
    stepped(form).register_step_pre_hook(lambda *_: (call(form), None)[1])
