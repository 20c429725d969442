"""The compose subgraph of one weight: traced once from the parametrization's own function.

    cores ->  compose (in the cores' dtype)  ->  aten.to.dtype(., weight dtype)  -> readers

The closing cast is there even when it changes nothing: it is the one node that *is* the weight, so
that a graph read from a file can be folded without its plan, and the one place where `.half()`
changes the dtype of the weight but not of the cores.
"""

from __future__ import annotations

from collections.abc import Hashable
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from opdf_compile.graph.edit import insert_graph
from opdf_compile.parametrizations.registry import get
from opdf_compile.plan.value import PlanEntry

WEIGHT_OP = torch.ops.aten.to.dtype

# Metadata of the node that is a weight: its name. A file does not keep it (see `regions`).
WEIGHT_MARK = "opdf_weight"


def core_dtype(entry: PlanEntry) -> torch.dtype:
    """The dtype that the cores of an entry are stored in."""
    dtype: torch.dtype = get(entry.parametrization).core_dtype(entry.spec)
    return dtype


def insert_compose(graph: Graph, entry: PlanEntry, before: Node) -> Node:
    """Add get_attrs for the cores and the ops that compose them.

    Args:
        graph: The graph to grow.
        entry: The plan's entry.
        before: The new nodes come before this one.

    Returns:
        The node whose value is the weight.
    """
    names = entry.core_names
    stem = entry.key.replace(".", "_")
    with graph.inserting_before(before):
        cores = [graph.get_attr(name) for name in names]
        weight = insert_graph(graph, _compose_graph(entry), cores, before)
        dtype = getattr(torch, entry.spec.dtype)
        node = graph.call_function(WEIGHT_OP, (weight, dtype), name=f"{stem}_composed")
    node.meta[WEIGHT_MARK] = entry.key
    return node


def _compose_graph(entry: PlanEntry) -> Graph:
    return _traced(entry.parametrization, cast(Hashable, entry.spec))


@lru_cache(maxsize=256)
def _traced(name: str, spec: Any) -> Graph:
    """Trace compose on tensors without memory: only shapes and dtype matter."""
    from torch.fx.experimental.proxy_tensor import make_fx

    parametrization = get(name)
    dtype = parametrization.core_dtype(spec)
    inner = spec.with_dtype(str(dtype).removeprefix("torch."))

    def compose(*tensors: Tensor) -> Tensor:
        return parametrization.compose(tensors, inner)

    cores = [
        torch.empty(shape, dtype=dtype, device="meta") for shape in parametrization.shapes(spec)
    ]
    module: GraphModule = make_fx(compose)(*cores)
    module.graph.eliminate_dead_code()
    return module.graph
