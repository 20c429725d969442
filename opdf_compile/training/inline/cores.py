"""The cores of one weight, as a ParameterList that keeps its precision.

A core in bfloat16 would lose 2e-3 of the weight, so `.half()` and `.bfloat16()` on the model move
the composed weight (its closing cast) and leave the cores in float32. `.double()` widens both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn


class CoreList(nn.ParameterList):
    """Tensors of one weight; a change of dtype may widen them and never narrows them."""

    def __init__(self, tensors: Iterable[Tensor], *, requires_grad: bool = True) -> None:
        """Take ownership of the tensors as Parameters."""
        super().__init__([nn.Parameter(t, requires_grad=requires_grad) for t in tensors])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def keep_precision(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if moved.dtype.itemsize >= tensor.dtype.itemsize:
                return moved
            return tensor.to(moved.device)

        return super()._apply(keep_precision, recurse)  # type: ignore[no-untyped-call]
