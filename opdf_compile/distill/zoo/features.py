"""A few numbers that say what a data set is about: what a zoo's students are told apart by.

For each label the mean of its inputs, through a fixed random projection, and the label's share of
the examples: labels * (width + 1) numbers, zeros for a label that does not occur. Two sets with the
same classes under the same labels have nearly the same features, whatever examples they hold.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from opdf_compile.errors import InputError

WIDTH = 16
_SEED = 2402


def data_features(inputs: Tensor, labels: Tensor, classes: int, *, width: int = WIDTH) -> Tensor:
    """The features of a data set.

    Args:
        inputs: ``(n, ..)``, floating point.
        labels: ``(n,)``, whole numbers from 0 to classes - 1.
        classes: How many labels there may be.
        width: Numbers for the mean of each label's inputs.

    Returns:
        ``(classes * (width + 1),)`` float64.

    Raises:
        InputError: The inputs are no floating-point numbers, or a label is out of range.
    """
    if not inputs.is_floating_point() or not len(inputs):
        raise InputError(
            f"the features of a data set are of inputs of {inputs.dtype} with {len(inputs)} rows, "
            "wanted floating-point numbers and a row at least; give columns of numbers"
        )
    least, most = int(labels.min()), int(labels.max())
    if labels.is_floating_point() or least < 0 or most >= classes:
        raise InputError(
            f"the labels go from {least} to {most} and there are {classes} of them, wanted whole "
            f"numbers from 0 to {classes - 1}; number them anew"
        )
    flat = inputs.detach().cpu().double().flatten(1)
    generator = torch.Generator().manual_seed(_SEED)
    projection = torch.randn(flat.shape[1], width, generator=generator, dtype=torch.float64)
    projected = flat @ projection / math.sqrt(flat.shape[1])
    found = torch.zeros(classes, width + 1, dtype=torch.float64)
    for label in sorted(set(labels.tolist())):
        rows = projected[labels.cpu() == label]
        found[label, :width] = rows.mean(0)
        found[label, width] = len(rows) / len(flat)
    return found.flatten()
