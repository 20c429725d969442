"""Logarithms of probabilities, safe where a class is impossible."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

# exp(-1e4) is 0 in every dtype, and 0 * -1e4 is 0 where 0 * -inf would be NaN.
FLOOR = -1e4


def log_softmax(logits: Tensor) -> Tensor:
    """Over the last axis; a class with the logit -inf gets `FLOOR` and no gradient."""
    logs = F.log_softmax(logits, dim=-1)
    return logs.masked_fill(logs.isneginf(), FLOOR)


def divergence(logs: Tensor, others: Tensor) -> Tensor:
    """KL(p || q) over the last axis, of their logarithms; ``(..., classes)`` -> ``(...)``."""
    return (logs.exp() * (logs - others)).sum(-1)
