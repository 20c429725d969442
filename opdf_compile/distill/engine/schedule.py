"""The learning rate of a step, as a share of its peak: no state, so nothing to resume."""

from __future__ import annotations

import math
from typing import Literal

from torch.optim import Optimizer

_Kind = Literal["cosine", "linear", "constant"]


def share_of_peak(step: int, steps: int, kind: _Kind, warmup: float) -> float:
    """Linear up, then as the kind says; above 0 at every step, and at its peak once.

    Args:
        step: From 0 on.
        steps: Of the whole run.
        kind: "cosine" (half a cosine towards 0), "linear" (towards 0) or "constant".
        warmup: The share of all steps in which the rate rises.
    """
    warm = min(round(warmup * steps), steps)
    if step < warm:
        # From 1 / (warm + 1) on: at a rate of 0 the first step would move nothing.
        return (step + 1) / (warm + 1)
    if kind == "constant":
        return 1.0
    # Below 1 at the last step too, which therefore still moves something.
    done = (step - warm) / max(1, steps - warm)
    return 0.5 * (1 + math.cos(math.pi * done)) if kind == "cosine" else 1 - done


def remember_peaks(optimizer: Optimizer) -> None:
    """Note each group's rate as its peak, under the name that torch's schedulers use."""
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]


def set_rates(optimizer: Optimizer, share: float) -> None:
    """Give every group its share of its own peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * share
