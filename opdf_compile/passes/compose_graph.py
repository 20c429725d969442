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

from opdf_compile.errors import PlanError
from opdf_compile.graph import insert_graph
from opdf_compile.parametrizations import registered
from opdf_compile.planning import PlanEntry

WEIGHT_OP = torch.ops.aten.to.dtype

# Metadata of the node that is a weight: its name. A file does not keep it (see `regions`).
WEIGHT_MARK = "opdf_weight"


def insert_compose(
    graph: Graph, entry: PlanEntry, before: Node, device: torch.device | None = None
) -> Node:
    """Add get_attrs for the cores and the ops that compose them.

    Args:
        graph: The graph to grow.
        entry: The plan's entry.
        before: The new nodes come before this one.
        device: Where the cores are; the CPU if None. A compose that makes constants
            (``torch.arange(.., device=core.device)``) has it in its graph.

    Returns:
        The node whose value is the weight.

    Raises:
        PlanError: The parametrization's compose is not a function of its tensors alone.
    """
    names = entry.core_names
    stem = entry.key.replace(".", "_")
    with graph.inserting_before(before):
        cores = [graph.get_attr(name) for name in names]
        place = torch.device("cpu") if device is None else device
        composed = _traced(entry.parametrization, cast(Hashable, entry.spec), place)
        weight = insert_graph(graph, composed, cores, before)
        dtype = getattr(torch, entry.spec.dtype)
        node = graph.call_function(WEIGHT_OP, (weight, dtype), name=f"{stem}_composed")
    node.meta[WEIGHT_MARK] = entry.key
    return node


@lru_cache(maxsize=256)
def _traced(name: str, spec: Any, device: torch.device) -> Graph:
    """Trace compose on fake tensors: no memory, no arithmetic, but the device of use."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    parametrization = registered(name)
    dtype = parametrization.core_dtype(spec)
    inner = spec.with_dtype(str(dtype).removeprefix("torch."))

    def compose(*tensors: Tensor) -> Tensor:
        return parametrization.compose(tensors, inner)

    # The caller's autocast would put casts to half precision into a graph that is kept.
    with torch.autocast(device.type, enabled=False), FakeTensorMode():
        cores = [
            torch.empty(shape, dtype=dtype, device=device) for shape in parametrization.shapes(spec)
        ]
        module: GraphModule = make_fx(compose)(*cores)
        ops = [n.target for n in module.graph.nodes if isinstance(n.target, torch._ops.OpOverload)]
        if any(op._schema.is_mutable for op in ops):
            # Filling a fresh tensor is as pure as an expression; write it as one.
            pure = torch.func.functionalize(compose, remove="mutations")
            module = make_fx(pure)(*cores)
    module.graph.eliminate_dead_code()
    constant = next((node for node in module.graph.nodes if node.op == "get_attr"), None)
    if constant is not None:
        raise PlanError(
            f"compose of the parametrization {name!r} reads a tensor that is none of its own "
            f"({constant.target}), wanted a function of its tensors alone; make constants by ops "
            "(torch.arange, torch.eye, torch.full), not from python lists or stored tensors"
        )
    return module.graph
