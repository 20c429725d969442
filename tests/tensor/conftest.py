"""The shapes in the signatures of tensor/ are executed while its tests run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence

import jaxtyping
import numpy as np
import pytest
import torch
from beartype import beartype
from torch import Tensor

from opdf_compile.tensor import composition as compose
from opdf_compile.tensor import decomposition as decompose
from opdf_compile.tensor import singular_values

Lossless = Callable[[Tensor, Sequence[Tensor]], None]


@pytest.fixture(autouse=True)
def executed_shapes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Check every `Float[Tensor, "..."]` of the modules that state shapes, at each call."""
    for module in (compose, decompose, singular_values):
        monkeypatch.setattr(module, "Float", jaxtyping.Float, raising=False)
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if "Float" in str(function.__annotations__) and function.__module__ == module.__name__:
                checked = jaxtyping.jaxtyped(typechecker=beartype)(function)
                monkeypatch.setattr(module, name, checked)
    yield


def dense(cores: Sequence[Tensor]) -> np.ndarray:
    """The matrix of an MPO in float64, by one einsum written out: the oracle of compose."""
    operands: list[object] = []
    for k, core in enumerate(cores):
        # Axes 3k, 3k+1, 3k+2 are the left bond, out mode and in mode of core k.
        operands += [core.detach().double().numpy(), [3 * k, 3 * k + 1, 3 * k + 2, 3 * k + 3]]
    count = len(cores)
    out = [3 * k + 1 for k in range(count)] + [3 * k + 2 for k in range(count)]
    tensor = np.einsum(*operands, [0, *out, 3 * count], optimize=True)
    rows = int(np.prod([core.shape[1] for core in cores]))
    return tensor.reshape(rows, -1)


def assert_lossless(matrix: Tensor, cores: Sequence[Tensor]) -> None:
    """Invariant 1, by the oracle in float64 and by compose in the cores' own dtype."""
    wanted = matrix.double().numpy()
    # A power of two brings the norm into range, whatever the weight's scale.
    scale = 2.0 ** -np.frexp(np.abs(wanted).max() or 1.0)[1]
    limit = 1e-6 * np.linalg.norm(wanted * scale)
    for found in (dense(cores), compose.compose(cores).double().numpy()):
        assert np.isfinite(found).all(), "the composed weight holds NaN or infinity"
        error = np.linalg.norm(found * scale - wanted * scale)
        assert error <= limit, f"relative error {error / limit * 1e-6:.2e} is above 1e-6"


@pytest.fixture
def lossless() -> Lossless:
    return assert_lossless


@pytest.fixture
def oracle() -> Callable[[Sequence[Tensor]], np.ndarray]:
    return dense


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
