"""The values of what depends on no input: parameters, buffers, and what is computed from them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_aggregate

from opdf_compile.graph import attribute


class Constants:
    """Reads constants of one graph, in float64 whatever casts the graph holds.

    Args:
        module: Holds the parameters.
        device: Where the numbers go; where they are by default. "meta" keeps their shapes alone.
    """

    def __init__(self, module: GraphModule, device: torch.device | str | None = None) -> None:
        """Nothing is read yet."""
        self._module, self.device = module, device
        self._known: dict[Node, Any] = {}

    def __call__(self, node: Node) -> Tensor:
        """The value of a node that depends on no input."""
        value: Tensor = self._value(node)
        return value

    def _value(self, node: Node) -> Any:
        if node not in self._known:
            self._known[node] = self._read(node) if node.op == "get_attr" else self._computed(node)
        return self._known[node]

    def _read(self, node: Node) -> Any:
        value = attribute(self._module, str(node.target))
        if not isinstance(value, Tensor):
            return value
        wide = value.detach().double() if value.is_floating_point() else value.detach()
        return wide if self.device is None else wide.to(self.device)

    def _computed(self, node: Node) -> Any:
        args, kwargs = map_aggregate((node.args, node.kwargs), self._argument)
        with torch.no_grad():
            return node.target(*args, **kwargs)  # type: ignore[operator]

    def _argument(self, argument: Any) -> Any:
        if isinstance(argument, Node):
            return self._value(argument)
        if isinstance(argument, torch.dtype) and argument.is_floating_point:
            return torch.float64
        return argument
