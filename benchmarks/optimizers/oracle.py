"""What the checks compare with: code that shares nothing with the package.

For matrices in floating point |fl(A B) - A B| <= g(k) |A| |B| entry by entry, k the length of the
sums and g(k) = k u / (1 - k u) with the unit roundoff u (Higham, Accuracy and Stability, 3.5); a
chain adds the lengths of its sums.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from bench.oracle import composed
from torch import Tensor

_UNIT = 2.0**-24


def misfit(weight: Tensor, cores: Sequence[Tensor], entry: Any) -> float:
    """How far a weight is from what its cores make, in units of what rounding explains.

    Up to 1 rounding explains it. The truth is made in float64.
    """
    wide = [core.detach().double() for core in cores]
    truth = composed(wide, entry)
    length = sum(core.shape[-1] for core in cores[:-1]) + len(cores)
    allowed = length * _UNIT / (1 - length * _UNIT) * composed([c.abs() for c in wide], entry)
    wrong = (weight.detach().double() - truth).abs()
    # Where nothing is summed up nothing may differ; a NaN is no fit either.
    ratio = torch.where(wrong == 0, torch.zeros_like(wrong), wrong / allowed)
    return float(torch.nan_to_num(ratio, nan=float("inf")).max())


def distance(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> float:
    """Of two sets of weights, over all entries, in the Euclidean norm."""
    return float(
        sum(float((left[name] - right[name]).double().square().sum()) for name in left) ** 0.5
    )


def equal(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    """Whether all bits are the same."""
    return all(torch.equal(left[name], right[name]) for name in left)
