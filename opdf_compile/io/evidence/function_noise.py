"""What a run of a graph shows beside its outputs: two things that files do differently.

*Functions that are exact in the absolute sense only.* ONNX Runtime computes a sigmoid on the CPU as
1/2 + p(x)/q(x), on CUDA as 1 - 1/(1 + exp(x)) for negative x: the error is a rounding of 1, however
small the result. torch computes 1/(1 + exp(-x)), whose error is a rounding of the result. A map of
probabilities that are all below 1e-3 is then "wrong" by a thousand roundings of itself although
nobody is to blame. So the truth is run once more with every such function moved by one unit in the
last place of its range, up or down at random; how far the outputs move belongs to the noise floor.
It is a property of the model and its inputs, hence no file under test can widen it.

*Queries that see no key.* Where a boolean mask leaves a query nothing (padding longer than a
sliding window), torch returns zeros and so do our files; the file of torch's own exporter gives the
mean of all values below opset 23. Such rows are padding that nobody reads, but errors there are as
large as the output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.overrides import TorchFunctionMode

from opdf_compile.graph import all_graphs

_ATEN = torch.ops.aten
# The function's range that its absolute error is a rounding of, from its input.
_RANGE: Mapping[Any, Callable[[Tensor], Tensor]] = {
    _ATEN.sigmoid.default: torch.ones_like,
    _ATEN.silu.default: torch.abs,
}
_ATTENTION = _ATEN.scaled_dot_product_attention.default


class Moved(TorchFunctionMode):
    """Moves each function of limited accuracy by `unit` times its range, up or down at random.

    Args:
        unit: One unit in the last place of 1 in the exported dtype.
        seed: Where the random signs start.
    """

    def __init__(self, unit: float, seed: int = 0) -> None:
        super().__init__()
        self._unit = unit
        self._signs = torch.Generator().manual_seed(seed)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call the function, and move its result if it is one of the table."""
        result = func(*args, **(kwargs or {}))
        size = _RANGE.get(func)
        if size is None:
            return result
        signs = torch.randint(0, 2, result.shape, generator=self._signs, dtype=torch.int8) * 2 - 1
        return result + self._unit * size(args[0]) * signs.to(result.device)


class Watched(TorchFunctionMode):
    """Counts the attention queries whose boolean mask allows no key, in `blind`."""

    def __init__(self) -> None:
        super().__init__()
        self.blind = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call the function, and look at its mask if it is an attention."""
        given = kwargs or {}
        mask = (
            (args[3] if len(args) > 3 else given.get("attn_mask")) if func is _ATTENTION else None
        )
        if isinstance(mask, Tensor) and mask.dtype is torch.bool:
            self.blind += int((~mask.any(-1)).sum())
        return func(*args, **given)


def has_limited_functions(graph: GraphModule) -> bool:
    """Whether a graph, or one nested in it, holds a function that `Moved` moves."""
    return any(node.target in _RANGE for part in all_graphs(graph) for node in part.graph.nodes)
