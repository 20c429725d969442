"""The weights of a model, and how far two nested values are from one another."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def equal(left: Any, right: Any) -> bool:
    """Whether two nested values hold the same bits."""
    if isinstance(left, Tensor):
        return isinstance(right, Tensor) and left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(equal, left, right))
    return bool(left == right)


def distance(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """The distance of two states over the norm of the second, all tensors as one vector.

    Tensor by tensor would not do: the bias of an attention key has no gradient but for rounding.
    """
    assert left.keys() == right.keys()
    names = [name for name, value in right.items() if value.is_floating_point()]
    one = torch.cat([left[name].double().flatten() for name in names])
    other = torch.cat([right[name].double().flatten() for name in names])
    return float((one - other).norm() / other.norm())
