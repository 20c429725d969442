"""How often a step runs a product, counted by torch, where gradients take unusual ways."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from opdf_compile.graph.flops import step_flops
from opdf_compile.graph.matching import match
from opdf_compile.graph.tracing import trace


class Written(nn.Module):
    """What a layer makes is written into a part of a tensor that was there before."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 4), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        whole = torch.zeros(len(x), 8)
        whole[:, :4] = self.first(x)
        return self.last(whole)


class WithoutGradients(nn.Module):
    """A layer that runs without gradients, one that sees what it makes, and one after that."""

    def __init__(self) -> None:
        super().__init__()
        self.still, self.first, self.last = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.still(x)
        return self.last(self.first(x))


class ShapedLike(nn.Module):
    """A layer that sees zeros, which have the shape of another's result and nothing else of it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.other = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.other(torch.zeros_like(y)) + self.other(y.new_ones(y.shape)) + y


class Rounds(nn.Module):
    """A cell, twice: gradients go to its state in the second round, and to no input."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x, self.cell(x))


@pytest.mark.parametrize(
    ("model", "passes"),
    [
        (Written(), {"first.weight": [2], "last.weight": [3]}),
        (WithoutGradients(), {"still.weight": [1], "first.weight": [2], "last.weight": [3]}),
        (ShapedLike(), {"first.weight": [2], "other.weight": [2, 2]}),
        (Rounds(), {"cell.weight_ih": [2, 2], "cell.weight_hh": [2, 3]}),
    ],
    ids=lambda given: type(given).__name__,
)
def test_a_step_runs_as_many_products_as_torch_counts(
    model: nn.Module, passes: dict[str, list[int]]
) -> None:
    x = torch.randn(5, 8)
    traced = trace(model, (x,))
    with FlopCounterMode(display=False) as counter:
        model(x).sum().backward()
    assert step_flops(traced.graphs["train"]) == counter.get_total_flops()
    found = {
        row.key: [use.passes for use in row.uses if use.phase == "train"]
        for row in match(traced).matches
    }
    assert found == passes
