"""Parametrizations as users write them, each with one property that a pass must cope with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from opdf_compile.parametrizations import registry
from opdf_compile.passes import compose_graph
from opdf_compile.planning.entry import PlanEntry
from opdf_compile.planning.plans import Plan
from opdf_compile.tensor.cost import Cost

Decompose = Callable[[Tensor], tuple[Tensor, ...]]
Compose = Callable[..., Tensor]


@dataclass(frozen=True)
class MadeSpec:
    """The weight's shape and the cores' shapes."""

    shape: tuple[int, ...]
    dtype: str
    cores: tuple[tuple[int, ...], ...]
    transposed: bool = False

    def with_dtype(self, dtype: str) -> MadeSpec:
        return replace(self, dtype=dtype)


class Made:
    """A parametrization made of two functions of tensors."""

    spec_type = MadeSpec

    def __init__(self, name: str, decompose: Decompose, compose: Compose) -> None:
        self.name = name
        self._decompose, self._compose = decompose, compose

    def decompose(
        self, weight: Tensor, spec: MadeSpec, *, device: Any = None
    ) -> tuple[Tensor, ...]:
        return tuple(t.clone() for t in self._decompose(weight.detach()))

    def compose(self, tensors: Sequence[Tensor], spec: MadeSpec) -> Tensor:
        return self._compose(*tensors).to(getattr(torch, spec.dtype))

    def core_names(self, key: str, spec: MadeSpec) -> tuple[str, ...]:
        return tuple(f"{key}_cores.{k}" for k in range(len(spec.cores)))

    def shapes(self, spec: MadeSpec) -> tuple[tuple[int, ...], ...]:
        return spec.cores

    def core_dtype(self, spec: MadeSpec) -> torch.dtype:
        return getattr(torch, spec.dtype)

    def cost(self, spec: MadeSpec) -> Cost:
        return Cost(parameters=sum(torch.Size(shape).numel() for shape in spec.cores))

    def spec_to_json(self, spec: MadeSpec) -> dict[str, object]:
        return {"shape": list(spec.shape), "dtype": spec.dtype}

    def plan(self, model: nn.Module, *keys: str) -> Plan:
        """A plan that gives this parametrization to the weights named."""
        entries = []
        for key in keys:
            weight = model.get_parameter(key)
            cores = tuple(tuple(t.shape) for t in self._decompose(weight.detach()))
            dtype = str(weight.dtype).removeprefix("torch.")
            entries.append(PlanEntry(key, self.name, MadeSpec(tuple(weight.shape), dtype, cores)))
        return Plan(tuple(entries))


def below(size: Tensor) -> Tensor:
    rows = torch.arange(size.shape[0], device=size.device)
    columns = torch.arange(size.shape[1], device=size.device)
    return rows[:, None] >= columns[None, :]


def triangles(lower: Tensor, upper: Tensor) -> Tensor:
    """Two factors, one for each side of the diagonal; the mask is a constant that is computed."""
    eye = torch.eye(lower.shape[0], lower.shape[1], dtype=lower.dtype, device=lower.device)
    return torch.where(below(lower), lower, upper) + (eye - eye)


def stacked_rows(top: Tensor, bottom: Tensor) -> Tensor:
    """A fresh tensor, filled in place."""
    weight = torch.zeros(
        top.shape[0] + bottom.shape[0], top.shape[1], dtype=top.dtype, device=top.device
    )
    weight[: top.shape[0]] = top
    weight[top.shape[0] :].copy_(bottom)
    return weight


def listed(core: Tensor) -> Tensor:
    return core * torch.tensor([2.0] * core.shape[1]) / 2.0


MADE = {
    "power": (lambda w: (w.sign() * w.abs().sqrt(),), lambda t: t * t.abs()),
    "triangles": (lambda w: (w * below(w), w * ~below(w)), triangles),
    "rows": (lambda w: (w[: len(w) // 2], w[len(w) // 2 :]), stacked_rows),
    "identity": (lambda w: (w,), lambda t: t),
    "random": (lambda w: (w,), lambda t: torch.dropout(t, 0.5, True)),
    "listed": (lambda w: (w,), listed),
    "bitcast": (lambda w: (w,), lambda t: t.view(torch.int32).view(torch.float32)),
}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Made]]:
    """Registers a parametrization by name, for one test."""
    monkeypatch.setattr(registry, "_REGISTERED", dict(registry._REGISTERED))

    def make(name: str) -> Made:
        parametrization = Made(f"made-{name}", *MADE[name])
        registry.register(parametrization)
        return parametrization

    yield make
    # Traces are kept by name.
    compose_graph._traced.cache_clear()
