"""Steps of methods without cores, by hand in numpy float64, on a small network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

LR, STEPS = 0.05, 8
KEYS = ("0.weight", "3.weight", "6.weight")
X = torch.randn(6, 3, 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
# Of one weight: its value before the step, the inner optimizer's move, dL/dW -> its new value.
After = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.Tanh(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(16, 5),
    ).to(dtype)


class ByHand:
    """SGD with momentum 0.9, or AdamW; what each makes of a gradient is its move."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.kept: dict[str, tuple[int, np.ndarray, np.ndarray]] = {}

    def move(self, key: str, gradient: np.ndarray, lr: float = LR) -> np.ndarray:
        count, first, second = self.kept.get(key, (0, 0 * gradient, 0 * gradient))
        count += 1
        if self.kind == "SGD":
            first = 0.9 * first + gradient
            self.kept[key] = count, first, second
            return -lr * first
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        self.kept[key] = count, first, second
        return -lr * first / (1 - 0.9**count) / (np.sqrt(second / (1 - 0.999**count)) + 1e-8)


OPTIONS: dict[str, dict[str, Any]] = {
    "SGD": {"momentum": 0.9, "weight_decay": 0.0},
    "AdamW": {"weight_decay": 0.0},
}


def inner_class(kind: str) -> Any:
    return getattr(torch.optim, kind)


def by_hand(
    kind: str,
    after: After,
    *,
    lr: Callable[[int], float] = lambda step: LR,
) -> nn.Module:
    """A network whose planned weights are stepped by hand, and all else by torch."""
    model, hand = network(), ByHand(kind)
    others = [p for name, p in model.named_parameters() if name not in KEYS]
    optimizer = inner_class(kind)(others, lr=LR, **OPTIONS[kind])
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = lr(step)
        model.zero_grad()
        model(X).square().mean().backward()
        for key in KEYS:
            weight = model.get_parameter(key)
            assert weight.grad is not None
            before, gradient = weight.detach().numpy().copy(), weight.grad.numpy()
            move = hand.move(key, gradient, lr(step))
            with torch.no_grad():
                weight.copy_(torch.from_numpy(after(before, move, gradient)))
        optimizer.step()
    return model


def train(model: nn.Module, optimizer: Any, steps: int = STEPS) -> None:
    x = X.to(next(model.parameters()).dtype)
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def close(found: nn.Module, wanted: nn.Module, tolerance: float = 1e-11) -> None:
    for key, value in wanted.state_dict().items():
        torch.testing.assert_close(found.state_dict()[key], value, rtol=tolerance, atol=tolerance)
