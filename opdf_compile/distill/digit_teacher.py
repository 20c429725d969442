"""The demo's teacher, trained: what the first recipe learns from, without a file to fetch."""

from __future__ import annotations

import torch.nn.functional as F

from opdf_compile.distill.digit_networks import Teacher
from opdf_compile.distill.digits import load_digits
from opdf_compile.distill.fitting import fit, reproducible


def trained_teacher(epochs: int = 10, rate: float = 0.004, seed: int = 0) -> Teacher:
    """A teacher that learned the training part of the digits; a few seconds on one core.

    The validation and test parts of the source "digits" are unknown to it.

    Args:
        epochs: Passes over the training part.
        rate: Peak learning rate.
        seed: Where start weights and the order of the images come from.

    Raises:
        UserError: scikit-learn is not installed.
    """
    digits = load_digits()
    with reproducible(seed):
        teacher, labels = Teacher(), digits.train.labels
        fit(
            teacher,
            digits.train,
            digits.validation,
            loss=lambda logits, indices: F.cross_entropy(logits, labels[indices]),
            rate=rate,
            epochs=epochs,
            batch=64,
            seed=seed,
        )
    return teacher
