"""The two forms in which a model trains: in its graph, or in the optimizer where no graph holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.graph.sharing import deep_copy
from zoo.checks import loss_of, owned_tensors


class Form(Protocol):
    """A student that trains over-parameterised.

    Attributes:
        module: What is called in training.
        untrained: The student as it is folded before any step.
    """

    module: nn.Module
    untrained: nn.Module

    def weights(self) -> dict[str, Tensor]:
        """The composed weights by key."""

    def cores(self, key: str) -> tuple[Tensor, ...]:
        """The cores of one weight."""

    def unplanned(self, planned: set[str]) -> dict[str, Tensor]:
        """Everything else that fold must bring back bit for bit."""

    def step(self, inputs: Mapping[str, Any], rate: float) -> Tensor:
        """Take one training step and return its loss."""

    def fold(self) -> nn.Module:
        """The student."""


class Inline:
    """The chain in the graph: `expand`."""

    def __init__(self, model: nn.Module, traced: opdf.Traced, plan: opdf.Plan) -> None:
        self._expanded = opdf.expand(traced, plan)
        self.module: nn.Module = self._expanded
        self.untrained = self.fold()

    def weights(self) -> dict[str, Tensor]:
        """The composed weights by key."""
        return {e.key: self._expanded.weight(e.key) for e in self._expanded.plan.entries}

    def cores(self, key: str) -> tuple[Tensor, ...]:
        """The cores of one weight."""
        return tuple(core.detach() for core in self._expanded.cores(key))

    def unplanned(self, planned: set[str]) -> dict[str, Tensor]:
        """Everything but the planned weights."""
        cores = tuple(f"{entry.key}_cores." for entry in self._expanded.plan.entries)
        owned = owned_tensors(self._expanded)
        known = owned_tensors(self.untrained)
        return {n: t for n, t in owned.items() if n in known and not n.startswith(cores)}

    def step(self, inputs: Mapping[str, Any], rate: float) -> Tensor:
        """One training step."""
        self.module.train()
        optimizer = torch.optim.AdamW(self.module.parameters(), lr=rate, weight_decay=0.0)
        torch.manual_seed(0)
        loss = loss_of(self.module(**inputs))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss

    def fold(self) -> nn.Module:
        """The student."""
        student = opdf.fold(self._expanded)
        assert isinstance(student, nn.Module)
        return student


class Hoisted:
    """The chain in the optimizer: `Overparam`, on a copy of the model."""

    def __init__(self, model: nn.Module, traced: opdf.Traced, plan: opdf.Plan) -> None:
        self.module: nn.Module = deep_copy(model)
        self._optimizer = opdf.Overparam(
            self.module, torch.optim.AdamW, lr=1e-3, weight_decay=0.0, plan=plan
        )
        self._plan = plan
        self.untrained = self.fold()

    def weights(self) -> dict[str, Tensor]:
        """The composed weights by key."""
        plain = dict(self.module.named_parameters(remove_duplicate=False))
        return {entry.key: plain[entry.key].detach() for entry in self._plan.entries}

    def cores(self, key: str) -> tuple[Tensor, ...]:
        """The cores of one weight."""
        return tuple(core.detach() for core in self._optimizer.program.cores(key))

    def unplanned(self, planned: set[str]) -> dict[str, Tensor]:
        """Everything but the planned weights."""
        return {n: t for n, t in owned_tensors(self.module).items() if n not in planned}

    def step(self, inputs: Mapping[str, Any], rate: float) -> Tensor:
        """One training step."""
        self.module.train()
        torch.manual_seed(0)
        loss = loss_of(self.module(**inputs))
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return loss

    def fold(self) -> nn.Module:
        """The student."""
        return opdf.fold(self._optimizer)


FORMS: dict[str, Callable[[nn.Module, opdf.Traced, opdf.Plan], Form]] = {
    "graph": Inline,
    "module": Hoisted,
}
