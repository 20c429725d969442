"""Methods that change the metric of a step and hold no cores.

    W <- after( step of the wrapped optimizer on W, given `multiplied(G)` )

The wrapped optimizer steps the student's own Parameter, with the state that it would keep anyhow.
A method sees the gradient before the step, the weight after it, and where it asks for one a copy of
the weight from before it; that copy lives as long as the step. What a method keeps from step to
step are small tensors that nothing trains, the `shapes` of its spec. Only the hoisted form has
these methods: a graph holds no optimizer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar, Generic, Literal, TypeVar

import torch
from torch import Tensor

from opdf_compile.errors import PlanError
from opdf_compile.parametrizations.base import Parametrization, ScalingTerm, TensorShapes
from opdf_compile.parametrizations.matrix_spec import MatrixSpec, checked_matrix

S = TypeVar("S", bound=MatrixSpec)
# How a step of an optimizer follows the size of a gradient, entry by entry: in proportion, as
# SGD's, or not at all, as AdamW's. None for all others.
Scaling = Literal["linear", "free"] | None
# Entries whose squares are summed in one go: in float32 their norm is off by 5e-5 at most.
_PIECE = 2**16


@dataclass
class MetricStep(Generic[S]):
    """One weight in one step of an optimizer.

    Attributes:
        weight: The weight, changed in place; a DTensor where it is sharded.
        gradient: dL/dW of this step, as it was clipped and unscaled.
        spec: The choice made for the weight.
        kept: What the method keeps for it.
        rate: The learning rate of its group; None where there is none.
        ascends: Whether the optimizer goes up the gradient (maximize=True).
        scaling: What is known of the optimizer.
        before: What `snapshot` gave before the step; the method may overwrite it.
    """

    weight: Tensor
    gradient: Tensor
    spec: S
    kept: tuple[Tensor, ...] = ()
    rate: float | None = None
    ascends: bool = False
    scaling: Scaling = None
    before: Tensor | None = None


class MetricParametrization(Parametrization[S]):
    """A parametrization without cores.

    Attributes:
        reads_rate: Whether it needs the group's learning rate, and that to be a step size.
        moves_after: Whether it moves the weight after the step.
        asks_scaling: Whether it needs an optimizer whose `Scaling` is known.
        decays: Whether the weight takes weight decay; else it is left out.
        copies: Whether a copy of the weight, or of its gradient, may live during the step.
    """

    metric = True
    usual_cores = 0
    reads_rate: ClassVar[bool] = False
    moves_after: ClassVar[bool] = True
    asks_scaling: ClassVar[bool] = False
    decays: ClassVar[bool] = True
    copies = False

    def snapshot(self, weight: Tensor, spec: S, scaling: Scaling) -> Tensor | None:
        """What `after` needs of the weight from before the step, in memory of its own."""
        return None

    def multiplied(self, gradient: Tensor, spec: S, scaling: Scaling) -> Tensor | None:
        """What the optimizer is given in place of the gradient, which stays; None: the gradient."""
        return None

    def after(self, steps: Sequence[MetricStep[S]]) -> None:
        """Move weights, in place, after the optimizer has stepped them.

        They have one dtype, device and rate, and are many only where they are small: to go over all
        of them with each operation costs less then than to go through the operations for each.
        """

    def strayed(
        self, weights: Sequence[Tensor], kept: Sequence[tuple[Tensor, ...]]
    ) -> Tensor | None:
        """Which of some weights of one dtype and device the last step cannot have left.

        Args:
            weights: The weights.
            kept: What is kept for each.

        Returns:
            A bool for each; None where it can have left any.
        """
        return None

    def decompose(
        self, weight: Tensor, spec: S, *, device: torch.device | str | None = None
    ) -> tuple[Tensor, ...]:
        """What is kept of the weight at the start."""
        checked_matrix(weight, spec)
        return ()

    def compose(self, tensors: Sequence[Tensor], spec: S) -> Tensor:
        """Nothing: the student holds the weight itself.

        Raises:
            PlanError: Always.
        """
        raise PlanError(
            f"{self.name} holds no cores that a weight is made of; train it in the hoisted form "
            "(opdf.Overparam), where the student's weight is the truth"
        )

    def shapes(self, spec: S) -> TensorShapes:
        """What is kept; nothing unless a child says so."""
        return ()

    def untrained(self, spec: S) -> tuple[int, ...]:
        """All of it."""
        return tuple(range(len(self.shapes(spec))))

    def terms(self, spec: S) -> tuple[ScalingTerm, ...]:
        """None: there are no cores that carry decay, the weight itself does."""
        return ()


def own_part(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor: its shard of a sharded one, else all of it."""
    to_local = getattr(tensor, "to_local", None)
    part: Tensor = tensor if to_local is None else to_local()
    return part


def norms_of(tensors: Sequence[Tensor]) -> Tensor:
    """Frobenius norms of whole tensors of one dtype, at least float32.

    All ranks call it for sharded ones.
    """
    wide = torch.float32 if tensors[0].dtype.itemsize < 4 else None
    if any(hasattr(tensor, "full_tensor") for tensor in tensors):
        norms = [torch.linalg.vector_norm(tensor, dtype=wide) for tensor in tensors]
        return torch.stack([n.full_tensor() if hasattr(n, "full_tensor") else n for n in norms])
    pieces = [_pieces(tensor) for tensor in tensors]
    found = torch._foreach_norm([piece for some in pieces for piece in some], 2, dtype=wide)
    if len(found) == len(tensors):
        return torch.stack(found)
    each = iter(found)
    ours = (torch.stack([*islice(each, len(some))]) for some in pieces)
    return torch.stack([torch.linalg.vector_norm(norms) for norms in ours])


def _pieces(tensor: Tensor) -> Sequence[Tensor]:
    """A CPU adds squares up one after the other: of 2^26 in float32 the norm is off by 2 %."""
    if tensor.device.type != "cpu" or tensor.numel() <= _PIECE:
        return (tensor,)
    return tensor.reshape(-1).chunk(math.ceil(tensor.numel() / _PIECE))
