"""Folding cores by the student alone: Parameters that no layer holds, stacks, computed weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import opdf_compile as opdf
from opdf_compile.errors import FoldError
from opdf_compile.io.saved.core_folding import fold_state


class Raw(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(shape))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.w


def cores_of(model: nn.Module) -> dict[str, Tensor]:
    traced = opdf.trace(model, (torch.randn(2, 8),))
    expanded = opdf.expand(traced, opdf.plan(traced, cores=3, min_size=1))
    return {name: tensor.detach() for name, tensor in expanded.state_dict().items()}


MODELS = [
    ("stored (in, out)", lambda: Raw(8, 6)),
    ("a stack", lambda: Raw(3, 8, 8)),
    ("weight norm", lambda: parametrizations.weight_norm(nn.Linear(8, 8))),
]


@pytest.mark.parametrize("build", [m for _n, m in MODELS], ids=[n for n, _m in MODELS])
def test_sizes_tell_rows_from_columns(build: Callable[[], nn.Module]) -> None:
    model = build()
    folded = fold_state(cores_of(model), None, model)
    torch.testing.assert_close(folded, dict(model.state_dict()), rtol=1e-5, atol=1e-6)


def test_a_square_matrix_of_no_layer_needs_a_plan() -> None:
    model = Raw(8, 8)
    with pytest.raises(FoldError, match="nothing tells its rows from its columns"):
        fold_state(cores_of(model), None, model)
