"""One pass over what is planned, not a dozen: torch's fused kernels on a CPU, lent for a step.

On a CPU torch steps tensor by tensor and op by op unless it is told otherwise. Measured over 172
cores of 6 million entries on one thread, single tensor / foreach / fused: AdamW 14.1 / 16.2 / 4.6
ms, Adagrad 9.7 / 12.5 / 3.5 ms; fused needs no temporaries. (SGD without momentum: 1.9 / 1.9 / 2.3,
so it is left alone.) The arithmetic is the same but for rounding, and so is the form of the state.
So where the user leaves torch the choice, with `foreach` and `fused` both None, a group of cores,
or of planned weights that have none, asks for it while the step runs. (A count of steps that begins
there has 32 bits, also where torch's default dtype has 64.) Before and after it shows the user's
own options. What is not planned is stepped bit for bit as torch does it.

The kernels take memory as it lies: a gradient or a state that lies otherwise than its parameter
would be read in the wrong order, without a word. Nor do they count as writes, which others look at.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.optim import Optimizer

from opdf_compile.training.optimizer.groups import Group

# Each has a `step` for every parameter that it steps, and counts it up before it moves it.
_CLASSES = (torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad)
_DTYPES = (torch.float32, torch.float64)


@contextmanager
def fused(inner: Optimizer, planned: Collection[int]) -> Iterator[None]:
    """Let an optimizer's groups ask for the fused kernels, where that changes nothing else.

    Args:
        inner: The optimizer; its gradients are there.
        planned: Ids of the cores, and of planned weights that have none. A group that holds
            anything else is left alone.
    """
    groups = inner.param_groups if type(inner) in _CLASSES else ()
    ours = (group for group in groups if all(id(p) in planned for p in group["params"]))
    lent = [group for group in ours if _fits(group, inner.state)]
    stepped = [p for group in lent for p in group["params"] if p.grad is not None]
    before = _counts(stepped, inner.state)
    for group in lent:
        group["fused"] = True
    try:
        yield
    finally:
        for group in lent:
            group["fused"] = None
        after = _counts(stepped, inner.state)
        pairs = zip(stepped, before, after, strict=True)
        # Of a step that failed half-way these are not all.
        increment_version([p for p, then, now in pairs if then != now])


def lay_alike(inner: Optimizer) -> None:
    """Bring what is kept of parameters to where the user's own fused kernels take it to lie.

    A run may go on with channels_last weights where it was saved without. A state that another
    class's kernels step may have a layout of its own, and keeps it.
    """
    for group in inner.param_groups:
        for parameter in group["params"] if group.get("fused") else ():
            kept = inner.state.get(parameter, {})
            kept.update({key: _laid(value, parameter) for key, value in kept.items()})


def _laid(value: Any, parameter: Tensor) -> Any:
    if type(value) is not Tensor or value.shape != parameter.shape:
        return value
    if value.layout != torch.strided or value.stride() == parameter.stride():
        return value
    return torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)


def _fits(group: Group, states: Mapping[Tensor, dict[str, Any]]) -> bool:
    if group.get("foreach") is not None or group.get("fused", False) is not None:
        return False
    if group.get("capturable") or group.get("differentiable"):
        return False
    if not all(isinstance(value, int | float) for value in _numbers(group)):
        return False
    moving = (p for p in group["params"] if p.grad is not None)
    return all(_lies_alike(p, states.get(p, {}).values()) for p in moving)


def _numbers(group: Group) -> Iterator[Any]:
    for key, value in group.items():
        if key not in ("params", "param_names", "foreach", "fused"):
            yield from value if isinstance(value, tuple) else (value,)


def _lies_alike(parameter: Tensor, kept: Iterable[Any]) -> bool:
    """Whether a parameter, its gradient and what is kept of it lie in memory in one order."""
    if parameter.device.type != "cpu" or parameter.dtype not in _DTYPES:
        return False
    for value in (parameter, parameter.grad, *kept):
        if type(value) not in (Tensor, nn.Parameter) or not value.is_contiguous():
            return False
        # A count of steps is read as a number of 32 bits, of whichever of these it is.
        if value.shape != parameter.shape:
            if value.dtype not in _DTYPES:
                return False
        elif value.dtype != parameter.dtype:
            return False
    return True


def _counts(parameters: Iterable[Tensor], states: Mapping[Tensor, dict[str, Any]]) -> list[int]:
    steps = (states.get(p, {}).get("step") for p in parameters)
    return [0 if step is None else step._version for step in steps]
