"""Real handwritten digits: 1797 images of 8 x 8 pixels that scikit-learn ships.

The images are split three ways, each class in the same proportion: one part to learn from, one to
choose with, and one that no choice ever sees and that the accuracies are stated on.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI repository.
"""

from __future__ import annotations

import torch

from opdf_compile.distill.recipe.examples import Table, split_off
from opdf_compile.distill.recipe.job import Examples
from opdf_compile.errors import UserError
from opdf_compile.extras import requirements_of

# A large test part, because its size limits how small a difference of accuracies can be seen.
_SHARES = {"train": 0.5, "validation": 0.15}
_LARGEST_PIXEL = 16.0


def load_digits(seed: int = 0) -> dict[str, Examples]:
    """Load and split the digits; the same seed gives the same split everywhere.

    Args:
        seed: Where the shuffle starts.

    Returns:
        By part the columns images, pixels from 0 to 1 of ``(n, 1, 8, 8)`` float32, and labels,
        ``(n,)`` int64.

    Raises:
        UserError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as load
    except ImportError as error:
        raise UserError(
            "the demo needs scikit-learn for its handwritten digits and found none; "
            f"pip install {requirements_of('demo')}"
        ) from error
    raw = load()
    images = torch.as_tensor(raw.images, dtype=torch.float32)[:, None] / _LARGEST_PIXEL
    whole = Table({"images": images, "labels": torch.as_tensor(raw.target, dtype=torch.int64)})
    return split_off(whole, _SHARES, "labels", seed, rest="test")
