"""Students and teachers of the experiments, as the recipes name them."""

from __future__ import annotations

from torch import Tensor, nn


class Signals(nn.Module):
    """Three convolutions over a signal of 40 numbers, ten classes.

    Shapes: signals ``(b, 40)`` -> logits ``(b, 10)``.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Unflatten(1, (1, 40)),
            nn.Conv1d(1, channels, 5, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv1d(channels, channels, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv1d(channels, channels, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(5 * channels, 10),
        )

    def forward(self, signals: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.layers(signals)
        return logits


def student() -> nn.Module:
    """8 channels: 898 parameters."""
    return Signals(8)


def teacher() -> nn.Module:
    """48 channels: 16,618 parameters."""
    return Signals(48)
