"""Where a step's batches come from: the data, or the student's own responses to their prompts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from opdf_compile.distill.engine.order import shard
from opdf_compile.distill.engine.setup import Setup


class Drawn(NamedTuple):
    """One process's part of a batch.

    Attributes:
        batch: On the device.
        indices: Which examples of the training part it is; None where it is something else, on
            which nothing that is kept of the teacher can be read.
    """

    batch: dict[str, Tensor]
    indices: list[int] | None


class BatchSource(Protocol):
    """Gives the batches of each step.

    What it gives depends on the number of the step and on its state, so that a run can be taken up
    between any two steps.

    Attributes:
        seconds: Spent on writing responses, in this process.
    """

    seconds: float

    def batches(self, number: int) -> list[Drawn]:
        """The batches of a step (from 0 on); all processes together."""
        ...

    def state(self) -> dict[str, Any]:
        """Its state beside tensors, as JSON; empty where it has none."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of its state."""
        ...

    def load(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Take a state up."""
        ...


class DataBatches:
    """The data alone, in the setup's order.

    Args:
        setup: Has the data and the order.
        rank: This process.
        ranks: How many there are.
    """

    seconds = 0.0

    def __init__(self, setup: Setup, rank: int, ranks: int) -> None:
        self._setup, self._rank, self._ranks = setup, rank, ranks

    def batches(self, number: int) -> list[Drawn]:
        """The batches of a step."""
        return [self.of(indices) for indices in self.places(number)]

    def places(self, number: int) -> list[list[int]]:
        """This process's examples in each batch of a step."""
        whole = self._setup.order.batches(number)
        return [shard(batch, self._rank, self._ranks) for batch in whole]

    def of(self, indices: list[int]) -> Drawn:
        """The batch of these examples."""
        setup = self._setup
        return Drawn(setup.batches.of(setup.job.data.train, indices), indices)

    def state(self) -> dict[str, Any]:
        """None."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """None."""
        return {}

    def load(self, _state: Mapping[str, Any], _tensors: Mapping[str, Tensor]) -> None:
        """There is nothing to take up."""
