"""Real handwritten digits: 1797 images of 8 x 8 pixels that scikit-learn ships.

The images are split three ways, each class in the same proportion: one part to learn from, one to
choose with, and one that no choice ever sees and that the accuracies are stated on.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI repository.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from opdf_compile.errors import UserError

# A large test split, because its size limits how small a difference of accuracies can be seen.
_TRAIN, _VALIDATION = 0.5, 0.15
_LARGEST_PIXEL = 16.0


@dataclass(frozen=True, eq=False)
class Split:
    """Images with their labels.

    Attributes:
        images: Pixels from 0 to 1, ``(n, 1, 8, 8)`` float32.
        labels: Digits, ``(n,)`` int64.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Digits:
    """The three parts: to learn from, to choose with, to state accuracies on."""

    train: Split
    validation: Split
    test: Split

    def sizes(self) -> dict[str, int]:
        """Images per part."""
        return {name: len(getattr(self, name)) for name in ("train", "validation", "test")}


def load_digits(seed: int = 0) -> Digits:
    """Load and split the digits; the same seed gives the same split everywhere.

    Args:
        seed: Where the shuffle starts.

    Raises:
        UserError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as load
    except ImportError as error:
        raise UserError(
            "the demo needs scikit-learn for its handwritten digits and found none; "
            "pip install 'opdf-compile[demo]'"
        ) from error
    raw = load()
    images = torch.as_tensor(raw.images, dtype=torch.float32)[:, None] / _LARGEST_PIXEL
    labels = torch.as_tensor(raw.target, dtype=torch.int64)
    return Digits(*(Split(images[i], labels[i]) for i in stratified(labels, seed)))


def stratified(labels: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of the train, validation and test parts, each class in the same proportion.

    Args:
        labels: Classes, ``(n,)``.
        seed: Where the shuffle starts.
    """
    generator = torch.Generator().manual_seed(seed)
    parts: tuple[list[Tensor], ...] = ([], [], [])
    for label in torch.unique(labels):
        members = (labels == label).nonzero()[:, 0]
        members = members[torch.randperm(len(members), generator=generator)]
        ends = [round(len(members) * share) for share in (_TRAIN, _TRAIN + _VALIDATION)]
        for part, indices in zip(parts, members.tensor_split(ends), strict=True):
            part.append(indices)
    train, validation, test = (torch.cat(part).sort().values for part in parts)
    return train, validation, test
