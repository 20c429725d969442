"""The student of acceptance point 7: all that fold has to bring back, in one model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import opdf_compile as opdf


class Everything(nn.Module):
    """BatchNorm, dropout, a tied weight, a shared module, a frozen layer, a grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 16)
        self.mix = nn.Conv1d(16, 16, 3, padding=1, groups=4)
        self.norm = nn.BatchNorm1d(16)
        self.frozen_norm = nn.BatchNorm1d(16)
        self.shared = nn.Linear(16, 16)
        self.frozen = nn.Linear(16, 16)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(16, 40, bias=False)
        self.head.weight = self.table.weight
        self.register_buffer("scale", torch.tensor(0.5), persistent=False)
        self.frozen.requires_grad_(False)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.table(ids)
        hidden = self.norm(self.mix(hidden.transpose(1, 2)))
        hidden = self.frozen_norm(hidden).transpose(1, 2)
        hidden = torch.relu(self.shared(torch.relu(self.shared(hidden))))
        hidden = self.drop(self.frozen(hidden)) * self.scale
        return self.head(hidden)


def everything() -> Everything:
    model = Everything().train()
    with torch.no_grad():
        model.frozen_norm.running_mean.normal_()
        model.frozen_norm.running_var.uniform_(0.5, 2.0)
    model.frozen_norm.eval()
    return model


@pytest.fixture
def student() -> Everything:
    return everything()


@pytest.fixture(scope="session")
def graphs() -> opdf.Traced:
    """Of a student equal to `student`, which nobody changes."""
    torch.manual_seed(0)
    return opdf.trace(everything(), (torch.randint(0, 40, (8, 5)),))


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(0, 40, (8, 5))
