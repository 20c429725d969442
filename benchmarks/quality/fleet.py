"""A fleet: many replicas of one tiny student, trained side by side, each with its own everything.

R replicas are R rows of one matrix; each has its own start, order of the data, learning rate,
decay, momentum and share of the teacher. They do not touch each other, so the gradient of the sum
of their losses is the gradient of each. A test shows that a row equals a loop with
`opdf.Overparam`.

SGD     b <- m b + g                                      w <- w - lr b
AdamW   b <- m b + (1 - m) g,  v <- 0.999 v + 0.001 g^2   w <- w - lr b' / (sqrt v' + 1e-8)

before which decay takes every weight W to (1 - lr wd) W; lr wd is given as one number, the decay
per step at the peak rate, since it is what acts on W. Both follow a warm-up and a cosine.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from quality.forms import Form
from quality.tasks import Part

OptimizerName = Literal["sgd", "adamw"]
TEMPERATURE = 4.0
_BETA2, _EPS = 0.999, 1e-8
_WARM_UP = 0.1
_SCORED_AT_ONCE = {"cuda": 512, "cpu": 64}
_CHECKED_STEPS = 3


def schedule(step: int, total: int) -> float:
    """The share of the peak rate at a step: linear up, then half a cosine down to zero."""
    warm = max(1, round(_WARM_UP * total))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


@dataclass(frozen=True)
class Settings:
    """One entry per replica, on one device.

    Attributes:
        rate: Peak learning rate.
        decay: lr wd at the peak.
        momentum: Of SGD, or AdamW's first beta.
        soft_share: Share of the teacher in the loss; the rest is the labels'.
        order: Row of the orders of the data that it follows.
    """

    rate: Tensor
    decay: Tensor
    momentum: Tensor
    soft_share: Tensor
    order: Tensor


class Fleet:
    """R replicas in training.

    Args:
        student: A student of the kind, for its forward.
        form: How the weights are held.
        start: Flat vectors ``(R, P)``; copied.
        settings: Per replica.
        data: What it trains on.
        optimizer: "sgd" or "adamw".
        steps: Length of the run.
        averaging: Decay of an average of the weights' vectors; 0 keeps none.
    """

    def __init__(
        self,
        student: nn.Module,
        form: Form,
        start: Tensor,
        settings: Settings,
        data: Part,
        *,
        optimizer: OptimizerName,
        steps: int,
        averaging: float = 0.0,
    ) -> None:
        self.form, self.settings, self.data = form, settings, data
        self.optimizer, self.steps, self.averaging = optimizer, steps, averaging
        self.flat = start.clone()
        self.average = self.flat.clone()
        self._first = torch.zeros_like(self.flat)
        self._second = torch.zeros_like(self.flat)
        self._forward = forward(student, form)
        self._exponents = form.per_entry(lambda leaf: leaf.exponent).to(start)
        self._trained = form.per_entry(lambda leaf: float(leaf.trained)).to(start)
        # Read by a recorded step, so they are changed in place.
        self._count = torch.zeros((), device=start.device, dtype=start.dtype)
        self._factor = torch.zeros_like(self._count)

    def run(self, orders: Tensor, *, record: bool = False) -> None:
        """Train from beginning to end.

        Args:
            orders: Places in the data ``(steps, number of orders, batch)``.
            record: Record a step once and replay it (CUDA only): a small network's time is that
                of launching its kernels.
        """
        device = self.flat.device
        counts = torch.arange(1, self.steps + 1, device=device, dtype=self.flat.dtype)
        shares = [schedule(step, self.steps) for step in range(self.steps)]
        factors = torch.tensor(shares, device=device, dtype=self.flat.dtype)
        chosen = orders[0][self.settings.order].clone()
        step = self._recorded(chosen) if record else lambda: self._step(chosen)
        for number in range(self.steps):
            chosen.copy_(orders[number][self.settings.order])
            self._count.copy_(counts[number])
            self._factor.copy_(factors[number])
            step()

    def _step(self, chosen: Tensor) -> None:
        gradient = self.gradient(chosen)
        with torch.no_grad():
            self._update(gradient)

    def gradient(self, chosen: Tensor) -> Tensor:
        """Gradients ``(R, P)`` on the batches ``(R, b)`` of places in the data."""
        flat = self.flat.detach().requires_grad_()
        logits = self._forward(flat, self.data.inputs[chosen])
        losses = distillation_losses(
            logits, self.data.teacher[chosen], self.data.labels[chosen], self.settings.soft_share
        )
        (gradient,) = torch.autograd.grad(losses.sum(), flat)
        return gradient * self._trained

    def _update(self, gradient: Tensor) -> None:
        momentum = self.settings.momentum[:, None]
        kept = 1 - self._factor * self.settings.decay
        self.flat.mul_(kept[:, None] ** self._exponents)
        rate = (self._factor * self.settings.rate)[:, None]
        if self.optimizer == "sgd":
            self._first.mul_(momentum).add_(gradient)
            self.flat.sub_(rate * self._first)
        else:
            self._first.mul_(momentum).add_((1 - momentum) * gradient)
            self._second.mul_(_BETA2).addcmul_(gradient, gradient, value=1 - _BETA2)
            size = (self._second / (1 - _BETA2**self._count)).sqrt_().add_(_EPS)
            self.flat.sub_(rate / (1 - momentum**self._count) * self._first / size)
        if self.averaging:
            self.average.mul_(self.averaging).add_(self.flat, alpha=1 - self.averaging)

    def _recorded(self, chosen: Tensor) -> Callable[[], None]:
        """A step to replay; an ordinary one, said so, where recording fails or differs."""
        state = (self.flat, self.average, self._first, self._second)
        saved = [tensor.clone() for tensor in state]
        self._count.fill_(1.0)
        self._factor.fill_(1.0)

        def restore() -> None:
            for tensor, value in zip(state, saved, strict=True):
                tensor.copy_(value)

        try:
            aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(_CHECKED_STEPS):
                    self._step(chosen)
            torch.cuda.current_stream().wait_stream(aside)
            wanted = self.flat.clone()
            restore()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._step(chosen)
            restore()
            for _ in range(_CHECKED_STEPS):
                graph.replay()
            same = torch.allclose(self.flat, wanted, rtol=1e-3, atol=1e-5, equal_nan=True)
        except RuntimeError as error:
            print(f"no recorded step ({str(error).splitlines()[0]}): slower", flush=True)
            same = False
        restore()
        return graph.replay if same else lambda: self._step(chosen)

    @torch.no_grad()
    def scores(self, part: Part, *, averaged: bool = False) -> tuple[Tensor, Tensor]:
        """Accuracy and mean KL(teacher || student) in nats, ``(R,)`` each.

        A replica that diverged has accuracy 0 and an infinite KL.
        """
        flat = self.average if averaged and self.averaging else self.flat
        at_once = _SCORED_AT_ONCE[flat.device.type]
        right, apart = torch.zeros_like(flat[:, 0]), torch.zeros_like(flat[:, 0])
        for first in range(0, len(part.labels), at_once):
            chosen = slice(first, first + at_once)
            inputs = part.inputs[chosen].expand(len(flat), *part.inputs[chosen].shape)
            logits = self._forward(flat, inputs)
            right += (logits.argmax(-1) == part.labels[chosen]).sum(-1)
            apart += divergence(logits, part.teacher[chosen].expand_as(logits)).sum(-1)
        good = torch.isfinite(apart)
        count = len(part.labels)
        return torch.where(good, right / count, 0.0), torch.where(good, apart / count, torch.inf)

    def weights(self) -> dict[str, Tensor]:
        """The students' parameters, with a leading axis of replicas."""
        with torch.no_grad():
            return vmap(self.form.weights)(self.flat.clone())


def forward(student: nn.Module, form: Form) -> Callable[[Tensor, Tensor], Tensor]:
    """Maps flat vectors ``(R, P)`` and inputs ``(R, b, ..)`` to logits ``(R, b, classes)``."""

    def one(flat: Tensor, inputs: Tensor) -> Tensor:
        logits: Tensor = functional_call(student, form.weights(flat), (inputs,))
        return logits

    return vmap(one)


def distillation_losses(logits: Tensor, teacher: Tensor, labels: Tensor, share: Tensor) -> Tensor:
    """(1 - a) CE + a T^2 KL at T = 4, ``(R,)`` means over the batches ``(R, b, classes)``."""
    hard = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    soft = divergence(logits / TEMPERATURE, teacher / TEMPERATURE)
    means = hard.view_as(labels).mean(1), soft.mean(1)
    return (1 - share) * means[0] + share * TEMPERATURE**2 * means[1]


def divergence(logits: Tensor, teacher: Tensor) -> Tensor:
    """KL(softmax teacher || softmax logits) over the last axis."""
    own, wanted = F.log_softmax(logits, -1), F.log_softmax(teacher, -1)
    return (wanted.exp() * (wanted - own)).sum(-1)
