"""The demo's teacher and its student: convolutions, batch normalisation and linear layers."""

from __future__ import annotations

from importlib.resources import files

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Student(nn.Module):
    """3,682 parameters: two convolutions and two linear layers.

    Shapes: images ``(b, 1, 8, 8)`` -> ``(b, 8, 4, 4)`` -> ``(b, 16, 2, 2)`` -> logits ``(b, 10)``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 16, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.fc1 = nn.Linear(64, 32)
        self.fc2 = nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(b, 10)`` of images ``(b, 1, 8, 8)``."""
        x = F.max_pool2d(torch.relu(self.bn1(self.conv1(images))), 2)
        x = F.max_pool2d(torch.relu(self.bn2(self.conv2(x))), 2)
        logits: Tensor = self.fc2(torch.relu(self.fc1(x.flatten(1))))
        return logits


class Teacher(nn.Module):
    """90,090 parameters: wider, one convolution more, and dropout.

    Shapes: images ``(b, 1, 8, 8)`` -> ``(b, 64, 4, 4)`` -> ``(b, 64, 2, 2)`` -> logits ``(b, 10)``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_block(1, 32),
            *_block(32, 64),
            nn.MaxPool2d(2),
            *_block(64, 64),
            nn.MaxPool2d(2),
        )
        self.head = nn.Sequential(
            nn.Dropout(0.3), nn.Linear(256, 128), nn.ReLU(), nn.Dropout(0.3), nn.Linear(128, 10)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(b, 10)`` of images ``(b, 1, 8, 8)``."""
        logits: Tensor = self.head(self.features(images).flatten(1))
        return logits


def _block(channels_in: int, channels_out: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    )


def trained_teacher(epochs: int = 20, seed: int = 0) -> nn.Module:
    """A teacher that learned the training part of the digits; some seconds on one core.

    The validation and test parts of the source "digits" are unknown to it.

    Args:
        epochs: Passes over the training part.
        seed: Where start weights, dropout and the order of the images come from.

    Raises:
        UserError: scikit-learn is not installed.
    """
    from opdf_compile.distill.engine import fit
    from opdf_compile.distill.recipe import parse_recipe, prepare

    text = (files("opdf_compile.distill.demo") / "teacher.toml").read_text(encoding="utf-8")
    recipe = parse_recipe(text, name="teacher.toml")
    training = recipe.training.model_copy(update={"epochs": epochs, "seed": seed})
    return fit(prepare(recipe.model_copy(update={"training": training}))).eval()
