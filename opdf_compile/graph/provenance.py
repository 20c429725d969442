"""Weights that reach a linear or convolution op through arithmetic (weight_norm, stacked experts).

The op's weight operand is no get_attr and no view of one. Walk back to the Parameters it is made
of and refuse each by name, so that none is skipped in silence.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.fx import GraphModule, Node

from opdf_compile.graph.ops import REFUSED_OPS, VIEW_OPS, WEIGHT_OPS, operand
from opdf_compile.graph.rows import Refusal


def refuse_indirect(
    graph_module: GraphModule, names: dict[int, tuple[str, ...]]
) -> Iterator[Refusal]:
    """A refusal for every Parameter and buffer that a weight operand is computed from.

    Args:
        graph_module: One phase's graph.
        names: All names of each Parameter, by id.
    """
    for node in graph_module.graph.nodes:
        if node.target not in WEIGHT_OPS or node.target in REFUSED_OPS:
            continue
        weight = operand(node, WEIGHT_OPS[node.target][0])
        if isinstance(weight, Node):
            yield from _refusals(graph_module, node, weight, names)


def _refusals(
    graph_module: GraphModule, op: Node, weight: Node, names: dict[int, tuple[str, ...]]
) -> Iterator[Refusal]:
    made_by, sources = _origin(weight)
    if sources is None:
        return  # The operand depends on an input: an activation, not a weight.
    for source in sources:
        value: object = graph_module
        for part in str(source.target).split("."):
            value = getattr(value, part, None)
        if isinstance(value, nn.Parameter) and value.ndim > 1 and made_by is not None:
            key = names.get(id(value), (str(source.target),))[0]
            reason = f"reaches {op.target} through {made_by.target}, not as the weight itself"
            yield Refusal(key, reason, shape=tuple(value.shape))
        elif made_by is None and not isinstance(value, nn.Parameter) and hasattr(value, "shape"):
            reason = f"is a buffer or constant read by {op.target}, not a trainable Parameter"
            yield Refusal(str(source.target), reason, shape=tuple(value.shape))


def _origin(weight: Node) -> tuple[Node | None, list[Node] | None]:
    """The op that made the operand (None: views only) and the get_attrs behind it.

    The list is None where an input of the model is behind it.
    """
    made_by: Node | None = None
    sources: list[Node] = []
    stack, seen = [weight], {weight}
    while stack:
        node = stack.pop()
        if node.op == "placeholder":
            return made_by, None
        if node.op == "get_attr":
            sources.append(node)
            continue
        if node.target not in VIEW_OPS and made_by is None:
            made_by = node
        fresh = [n for n in node.all_input_nodes if n not in seen]
        seen.update(fresh)
        stack.extend(fresh)
    return made_by, sources
