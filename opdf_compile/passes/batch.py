"""batch: parts of one form, composed together.

    T_k^(b) -> W^(b),  b = 1..B      ->      stack_b(T_k) -> stack_b(W)        one batched product

Two parts have one form if they take cores of the same shapes and dtypes and do the same ops. The
ops of the batch come from `torch.vmap`, so that any parametrization that vmap can take is batched.
Whether it pays is the caller's decision (see `training.batching`): a batched product saves launches
and optimizer calls, and costs a copy of each weight and gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from opdf_compile.passes.hoist import Part

# Shape and dtype of each core, by name.
Shapes = Mapping[str, tuple[tuple[int, ...], torch.dtype]]


def form(part: Part, shapes: Shapes) -> Hashable:
    """What two parts have in common when they can be batched; a part of several weights has none.

    Args:
        part: One part of a weight program.
        shapes: Shape and dtype of every core.
    """
    if len(part.keys) != 1:
        return part.keys
    return tuple(shapes[name] for name in part.cores), _ops(part.graph)


def group(
    parts: Sequence[Part], shapes: Shapes, separate: Callable[[Part], Hashable]
) -> list[tuple[Part, ...]]:
    """Parts of one form together, in the order of their first members.

    Args:
        parts: The parts of one program.
        shapes: Shape and dtype of every core.
        separate: Parts for which this differs are never put together (two param groups, say).
    """
    found: dict[Hashable, list[Part]] = {}
    for part in parts:
        found.setdefault((form(part, shapes), separate(part)), []).append(part)
    return [tuple(members) for members in found.values()]


def batched(part: Part, size: int, shapes: Shapes) -> Graph:
    """The graph of `size` parts of one form: stacked cores in, a tuple with the stacked weight out.

    Args:
        part: One of them.
        size: How many.
        shapes: Shape and dtype of its cores.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    single = GraphModule(nn.Module(), part.graph)

    def compose(*cores: Tensor) -> Any:
        return torch.vmap(single)(*cores)

    with FakeTensorMode():
        stacked = [
            torch.empty((size, *shape), dtype=dtype)
            for shape, dtype in (shapes[name] for name in part.cores)
        ]
        traced: GraphModule = make_fx(compose)(*stacked)
    traced.graph.eliminate_dead_code()
    return traced.graph


def _ops(graph: Graph) -> str:
    """The ops as text, with nodes numbered in order: names do not tell graphs apart."""
    numbers = {node: index for index, node in enumerate(graph.nodes)}

    def text(value: object) -> str:
        if isinstance(value, Node):
            return f"%{numbers[value]}"
        if isinstance(value, tuple | list):
            return f"[{', '.join(map(text, value))}]"
        return repr(value)

    return "\n".join(
        f"{text(node.target) if node.op == 'call_function' else node.op}"
        f"({text(node.args)}, {sorted((k, text(v)) for k, v in node.kwargs.items())})"
        for node in graph.nodes
    )
