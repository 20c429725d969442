"""Weights that reach a linear or convolution op through arithmetic (weight_norm, stacked experts).

The op's weight operand is no get_attr and no view of one. Walk back to the Parameters it is made
of and refuse each by name, so that none is skipped in silence.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.fx import GraphModule, Node

from opdf_compile.graph.edit import attribute
from opdf_compile.graph.ops import REFUSED_OPS, VIEW_OPS, WEIGHT_OPS, operand
from opdf_compile.graph.rows import Refusal
from opdf_compile.graph.uses import entries


def refuse_indirect(
    graph_module: GraphModule, names: dict[int, tuple[str, ...]]
) -> Iterator[Refusal]:
    """A refusal for every Parameter and buffer that a weight operand is computed from.

    Args:
        graph_module: One phase's graph; the graphs nested in it are looked through.
        names: All names of each Parameter, by id.
    """
    walk = _Walk(names)
    yield from walk.refusals(graph_module)


@dataclass
class _Walk:
    """One pass over a graph and those nested in it.

    Attributes:
        names: All names of each Parameter, by id.
        outer: For a placeholder of a nested graph, the node that is passed in.
        holder: The module that a graph's get_attrs read from, by the graph's id.
    """

    names: dict[int, tuple[str, ...]]
    outer: dict[Node, Node] = field(default_factory=dict)
    holder: dict[int, GraphModule] = field(default_factory=dict)

    def refusals(self, module: GraphModule) -> Iterator[Refusal]:
        self.holder[id(module.graph)] = module
        for node in module.graph.nodes:
            if node.target in WEIGHT_OPS and node.target not in REFUSED_OPS:
                for place, where in enumerate(WEIGHT_OPS[node.target]):
                    weight = operand(node, where)
                    if isinstance(weight, Node):
                        yield from self._judge(node, weight, parameters_only=place > 0)
            for inner in self._enter(module, node):
                yield from self.refusals(inner)

    def _enter(self, module: GraphModule, call: Node) -> list[GraphModule]:
        """The graphs nested in a call, with their placeholders tied to what is passed in."""
        found: dict[int, GraphModule] = {}
        for given in call.all_input_nodes:
            for inner, place in entries(module, call, given):
                self.outer[place] = given
                found[id(inner)] = inner
        return list(found.values())

    def _judge(self, op: Node, weight: Node, *, parameters_only: bool) -> Iterator[Refusal]:
        made_by, sources = self._origin(weight)
        values = [self._value(source) for source in sources]
        matrices = [(n, v) for n, v in values if isinstance(v, nn.Parameter) and v.ndim > 1]
        if made_by is not None:
            for target, value in matrices:
                key = self.names.get(id(value), (target,))[0]
                reason = f"reaches {op.target} through {made_by.target}, not as the weight itself"
                yield Refusal(key, reason, shape=tuple(value.shape))
        if matrices or parameters_only:
            return
        for target, constant in values:
            if isinstance(constant, Tensor) and not isinstance(constant, nn.Parameter):
                reason = f"is a buffer or constant read by {op.target}, not a trainable Parameter"
                yield Refusal(target, reason, shape=tuple(constant.shape))

    def _value(self, source: Node) -> tuple[str, object]:
        target = str(source.target)
        return target, attribute(self.holder[id(source.graph)], target)

    def _origin(self, weight: Node) -> tuple[Node | None, list[Node]]:
        """The op that made the operand (None: views only) and the get_attrs behind it.

        The list is empty where an input of the model is behind it: an activation, not a weight.
        """
        made_by: Node | None = None
        sources: list[Node] = []
        stack, seen = [weight], {weight}
        while stack:
            node = stack.pop()
            if node.op == "placeholder" and node not in self.outer:
                return made_by, []
            if node.op == "get_attr":
                sources.append(node)
                continue
            view = node.op == "placeholder" or node.target in VIEW_OPS
            if not view and node.target is not operator.getitem and made_by is None:
                made_by = node
            behind = [self.outer[node]] if node in self.outer else node.all_input_nodes
            fresh = [n for n in behind if n not in seen]
            seen.update(fresh)
            stack.extend(fresh)
        return made_by, sources
