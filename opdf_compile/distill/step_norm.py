"""How far a training step moves the planned weights, on a copy, from one start again and again."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from opdf_compile.io.checkpoints.random_states import random_states, restorer
from opdf_compile.parametrizations.registry import get
from opdf_compile.plan.value import Plan
from opdf_compile.training.optimizer.overparam import Overparam

BatchLoss = Callable[[nn.Module], Tensor]


@contextmanager
def kept_randomness() -> Iterator[Callable[[], None]]:
    """Gives what sets the generators back to where they are now, and does so at the end."""
    rewind = restorer(random_states(), "the calibration of the learning rate")
    try:
        yield rewind
    finally:
        rewind()


class Batch:
    """One batch on which a model takes a few steps, again and again from the same start."""

    def __init__(
        self, model: nn.Module, loss: BatchLoss, steps: int, randomness: Callable[[], None]
    ) -> None:
        self._model, self._loss, self._steps, self._randomness = model, loss, steps, randomness
        self._start = [(tensor, tensor.detach().clone()) for tensor in _tensors(model)]

    def rewind(self) -> None:
        """Every parameter, buffer and random number as at the start."""
        self._randomness()
        with torch.no_grad():
            for tensor, value in self._start:
                tensor.copy_(value)

    def step(self, optimizer: Optimizer, weights: Callable[[], list[Tensor]]) -> float:
        """Mean norm of the change of the weights in a step; infinity where training diverged."""
        self.rewind()
        before, norms = weights(), []
        for _ in range(self._steps):
            optimizer.zero_grad()
            with torch.enable_grad():
                loss = self._loss(self._model)
                if not bool(torch.isfinite(loss.detach()).all()):
                    return math.inf
                loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            after = weights()
            norms.append(_distance(before, after))
            before = after
        mean = sum(norms) / len(norms)
        return mean if math.isfinite(mean) else math.inf


def _tensors(model: nn.Module) -> Iterable[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def plain_weights(model: nn.Module, plan: Plan) -> list[Tensor]:
    """The planned weights of a model as they are now, in float64."""
    return [model.get_parameter(entry.key).detach().double().clone() for entry in plan.entries]


def _distance(before: list[Tensor], after: list[Tensor]) -> float:
    squares = ((new - old).square().sum() for old, new in zip(before, after, strict=True))
    return math.sqrt(sum(float(square) for square in squares))


class Trial:
    """The over-parameterised student, to be stepped at one rate after another.

    Its weights are composed from the cores in float64: the rounding of float32 sums, 3e-7 of a
    weight's norm, would be a floor under small steps.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        make: Callable[..., Optimizer],
        given: Any,
        lr: float,
        options: dict[str, Any],
    ) -> None:
        self._plan, self._lr = plan, lr
        self._optimizer = Overparam(given, make, plan=plan, module=model, lr=lr, **options)
        self._start = copy.deepcopy(self._optimizer.state_dict())
        self._rates = [float(group["lr"]) for group in self._optimizer.param_groups]

    def __call__(self, batch: Batch, rate: float) -> float:
        """The mean step norm at this rate."""
        batch.rewind()
        self._optimizer.load_state_dict(copy.deepcopy(self._start))
        for group, own in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = own * rate / self._lr
        return batch.step(self._optimizer, self._composed)

    def _composed(self) -> list[Tensor]:
        made = []
        for entry in self._plan.entries:
            wide = [core.detach().double() for core in self._optimizer.program.cores(entry.key)]
            made.append(get(entry.parametrization).compose(wide, entry.spec.with_dtype("float64")))
        return made
