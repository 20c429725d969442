"""Whether an optimizer needs gradients, or moves parameters, before it calls the closure of a step.

Most call the closure first. Sharpness-aware ones climb along the gradients that are there and have
the closure evaluated at the top; others step between two points and back. A throwaway instance
tells which: two runs that differ in nothing but the gradients that are there before the step.

    p, g -> step(closure), where the closure sets one gradient h     equal for all g: not needed
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from opdf_compile.training.optimizer.arguments import Maker
from opdf_compile.training.optimizer.groups import Group, options_of
from opdf_compile.training.optimizer.trials import moving, trying

_STEPS = 4  # In the first ones many have no point yet that they could step to.


def moves_early(make: Maker, inner: Optimizer) -> bool:
    """Whether the wrapped optimizer uses what is there before it calls the closure, or moves it.

    Where it cannot be tried out the answer is yes, which costs a pull of gradients that it may not
    need and changes nothing else.
    """
    devices = {p.device for group in inner.param_groups for p in group["params"]}
    runs = []
    for sign in (1.0, -1.0):
        # Each for itself, so that both find the same random numbers.
        with trying(make, devices):
            try:
                runs.append(_trial(make, inner, sign))
            except Exception:  # noqa: BLE001 - whatever a class of somebody else raises on a trial
                return True
    (first, moved), (second, _moved) = runs
    return moved or any(not torch.equal(*pair) for pair in zip(first, second, strict=True))


def _trial(make: Maker, inner: Optimizer, sign: float) -> tuple[list[Tensor], bool]:
    """The parameters at each evaluation and at the end; whether one had moved before."""
    groups = [_like(group) for group in inner.param_groups if group["params"]]
    parameters = [group["params"][0] for group in groups]
    tried = make(groups)
    seen: list[Tensor] = []
    moved = False
    calls = 0

    def closure() -> Tensor:
        nonlocal calls, moved
        now = [p.detach().clone() for p in parameters]
        moved |= not calls and not all(map(torch.equal, now, before))
        calls += 1
        seen.extend(now)
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, 0.5)
        return torch.tensor(1.0)

    for _step in range(_STEPS):
        calls, before = 0, [p.detach().clone() for p in parameters]
        for parameter in parameters:
            slope = torch.linspace(-1.0, 2.0, parameter.numel()).to(parameter)
            parameter.grad = slope.view_as(parameter) * sign
        tried.step(closure)  # type: ignore[arg-type]
    return [*seen, *(p.detach() for p in parameters)], moved


def _like(group: Group) -> Group:
    """A group with the same options over one small parameter of the same kind."""
    model = group["params"][0]
    options = {key: _copied(value) for key, value in options_of(moving(group, group)).items()}
    small = torch.ones([2] * model.ndim, dtype=model.dtype, device=model.device)
    return {**options, "params": [nn.Parameter(small)]}


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)
