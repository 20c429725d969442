"""Whether torch has the optimizer that a recipe names, and whether it takes its options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from opdf_compile.distill.recipe.muon_adamw import MuonAdamW
from opdf_compile.distill.recipe.problems import Problem, suggestion
from opdf_compile.distill.recipe.schema import OptimizerSection, Recipe

# LBFGS evaluates the loss by itself, which no training loop over batches allows; sparse gradients
# have no cores.
_UNFIT = {
    "LBFGS": "evaluates the loss several times per step",
    "SparseAdam": "takes sparse gradients only",
}
_OWN = ("params", "lr", "weight_decay")
# What torch does not have in one class.
_OURS: dict[str, type[Optimizer]] = {"MuonAdamW": MuonAdamW}


def optimizer_names() -> tuple[str, ...]:
    """The classes that a recipe can name: those of torch.optim, and ours."""
    theirs = [
        name
        for name, value in vars(torch.optim).items()
        if isinstance(value, type)
        and issubclass(value, Optimizer)
        and value is not Optimizer
        and name not in _UNFIT
    ]
    return tuple(sorted({*theirs, *_OURS}))


def optimizer_class(section: OptimizerSection) -> type[Optimizer]:
    """The class that a checked section names."""
    found: type[Optimizer] = _OURS.get(section.name) or getattr(torch.optim, section.name)
    return found


def optimizer_options(
    section: OptimizerSection, weight_decay: float | None = None
) -> dict[str, Any]:
    """The class's keyword arguments apart from the rate."""
    options = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in section.options.items()
    }
    decay = section.weight_decay if weight_decay is None else weight_decay
    if "weight_decay" in inspect.signature(optimizer_class(section)).parameters:
        options["weight_decay"] = decay
    return options


def optimizer_problems(recipe: Recipe) -> Iterator[Problem]:
    """What is wrong with [optimizer], one problem after the other."""
    section, place = recipe.optimizer, ("optimizer", "name")
    if section.name in _UNFIT:
        yield Problem(
            place,
            f"{section.name} in [optimizer] {_UNFIT[section.name]}, wanted an optimizer that "
            'steps once per batch; write name = "AdamW"',
        )
        return
    if section.name not in optimizer_names():
        advice = suggestion(section.name, optimizer_names(), 'write name = "AdamW"')
        yield Problem(
            place,
            f'name in [optimizer] is "{section.name}", wanted a class of torch.optim or MuonAdamW '
            f"({', '.join(optimizer_names())}){advice}",
        )
        return
    yield from _options(section)


def _options(section: OptimizerSection) -> Iterator[Problem]:
    known = [
        name for name in inspect.signature(optimizer_class(section)).parameters if name not in _OWN
    ]
    for name in section.options:
        if name not in known:
            keys = [*type(section).model_fields, *known]
            yield Problem(
                ("optimizer", name),
                f"[optimizer] has the key {name}, which {section.name} does not take, wanted one "
                f"of {', '.join(keys)}{suggestion(name, keys, 'remove it')}",
            )
            return
    if (
        section.weight_decay
        and "weight_decay" not in inspect.signature(optimizer_class(section)).parameters
    ):
        yield Problem(
            ("optimizer", "weight_decay"),
            f"[optimizer] has weight_decay, which {section.name} does not take; remove it",
        )
        return
    yield from _values(section)


def _values(section: OptimizerSection) -> Iterator[Problem]:
    """What the class itself says of the values, tried on a parameter of one number."""
    options = optimizer_options(section)
    kind: Callable[..., Optimizer] = optimizer_class(section)
    try:
        kind([nn.Parameter(torch.zeros(1))], lr=section.lr, **options)
    except (ValueError, TypeError, RuntimeError, AttributeError) as error:
        names = [name for name in section.options if name in str(error).lower()]
        guess = names or list(section.options)
        yield Problem(
            ("optimizer", guess[0] if guess else "name"),
            f"{section.name} refuses the options of [optimizer] "
            f"({str(error).strip().rstrip('.')}), wanted values that it takes; correct "
            f"{guess[0] if guess else 'them'}",
        )
