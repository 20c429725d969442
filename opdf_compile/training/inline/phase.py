"""One phase's graph as a function of the module that holds the parameters.

Two GraphModules would hold two trees of buffers, which `.to()` tears apart. Here the graphs are
compiled to plain functions of ``self``, so one tree of parameters serves both phases.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import nn
from torch.fx import Graph
from torch.fx.graph import CodeGen

from opdf_compile.errors import InputError
from opdf_compile.graph import copied
from opdf_compile.passes import WEIGHT_MARK, WEIGHT_OP


@dataclass(eq=False)
class PhaseGraph:
    """A graph with flat inputs and outputs, and the tree of its output.

    Attributes:
        graph: Never changed after it is made; a change of dtype makes a new one.
        out_spec: How the flat outputs become the model's own output.
        function: ``function(module, *leaves)`` runs the graph on the module's parameters.
    """

    graph: Graph
    out_spec: pytree.TreeSpec
    function: Callable[..., Any] = field(init=False, repr=False)

    def __deepcopy__(self, memo: dict[int, Any]) -> PhaseGraph:
        """Graphs are never changed in place, so copies of a module share them."""
        return self

    def __reduce__(self) -> str | tuple[Any, ...]:
        """Refuse: the nodes' metadata (symbolic shapes, fake tensors) cannot be pickled.

        Raises:
            InputError: Always.
        """
        raise InputError(
            "an Expanded cannot be pickled, its graphs hold symbolic shapes; save its "
            "state_dict(), or the whole of it as .pt2 with opdf-compile expand"
        )

    def __post_init__(self) -> None:
        """Compile at once: torch.compile cannot look into code generation in the first call."""
        code = self.graph.python_code("self")
        scope = dict(code.globals)
        exec(compile(code.src, f"<opdf graph {id(self):x}>", "exec"), scope)
        self.function = scope["forward"]

    def run(self, module: nn.Module, leaves: list[Any]) -> Any:
        """The model's output, in its own structure."""
        return pytree.tree_unflatten(self.function(module, *leaves), self.out_spec)

    def with_weight_dtypes(self, moved: Mapping[torch.dtype, torch.dtype]) -> PhaseGraph:
        """The same graph whose composed weights have the dtypes that theirs become."""
        graph = copied(self.graph, CodeGen())
        for node in graph.nodes:
            if WEIGHT_MARK in node.meta:
                assert node.target is WEIGHT_OP
                node.args = (node.args[0], moved[node.args[1]])
        return PhaseGraph(graph, self.out_spec)
