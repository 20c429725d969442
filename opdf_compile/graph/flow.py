"""One walk over a graph: which Parameters reach which operands, and through what.

Each node is visited once, in order, and gets a `Provenance`. Where a product or a layer reads a
value that is made of Parameters, a `Meeting` is noted. Nested graphs are walked with their
placeholders bound to what is passed in, so a weight inside `cond`, `scan` or a region without
gradients is seen.

What is an activation (an input reaches it) carries no Parameters on, so the walk costs what the
graph costs, however deep it is.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field, replace

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from opdf_compile.graph import ops
from opdf_compile.graph.edit import attribute
from opdf_compile.graph.equations import labelled_operands
from opdf_compile.graph.provenance import (
    FED,
    NOTHING,
    Origin,
    Provenance,
    example_shape,
    handed_on,
    is_size,
    merged,
)
from opdf_compile.graph.scope import Scope
from opdf_compile.graph.uses import LOOPS, Nested, nested_graphs

# Higher-order ops by how their nested graph takes its operands.
_SLICED = ("scan", "map_impl", "map")
WRITTEN = "is written in place by forward ({}): cores would not follow"
NESTED = "is read by its name inside a nested graph, where it cannot be replaced"


@dataclass(frozen=True)
class Meeting:
    """One Parameter (or constant) at one operand of one op.

    Attributes:
        kind: "use" (a weight operand), "weak" (a product with a constant or with itself), "lookup"
            (an embedding), "never" (must not be replaced), or "aside" (read, but not as a weight).
        node: The op.
        origin: The Parameter and its way; None for a constant.
        labels: What the operand's axes do (see `ops`); "" where it is no weight.
        operand: The node that is read.
        reason: For "never" and "aside", the sentence.
        constant: The constant's name.
    """

    kind: str
    node: Node
    origin: Origin | None
    labels: str = ""
    operand: Node | None = None
    reason: str = ""
    constant: str = ""


@dataclass
class Flow:
    """The walk over one phase's graph.

    Attributes:
        meetings: What was noted, in graph order.
        read: For each Parameter that is read, by id, the first op that reads it.
        shapes: Shapes of the constants, by name.
    """

    meetings: list[Meeting] = field(default_factory=list)
    read: dict[int, Node] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def walk(
        self, module: GraphModule, given: tuple[Provenance, ...] | None = None
    ) -> list[Provenance]:
        """Visit a graph; the values of its outputs.

        `given` are the values of a nested graph's placeholders.
        """
        scope = Scope(module)
        places = iter(given or ())
        for node in module.graph.nodes:
            if node.op == "output":
                outputs = node.args[0] if isinstance(node.args[0], list | tuple) else node.args[:1]
                return [scope.value(o) for o in outputs]
            if node.op == "placeholder":
                scope.known[node] = FED if given is None else next(places)
            elif node.op == "get_attr":
                scope.known[node] = self._stored(module, node, nested=given is not None)
            elif is_size(node):
                scope.known[node] = NOTHING
            else:
                scope.put(node, self._visit(scope, node))
                self._written(scope, node)
        return []

    def _written(self, scope: Scope, node: Node) -> None:
        """A Parameter that forward itself writes: what it writes would be lost with the cores."""
        target = scope.target_of_write(node)
        if target is None or target.op not in ("get_attr", "placeholder"):
            return
        for origin in scope.known[target].origins.values():
            if origin.parameter.ndim > 1 and not origin.through:
                reason = WRITTEN.format(node.target)
                self.meetings.append(Meeting("never", node, origin, reason=reason))

    def _stored(self, module: GraphModule, node: Node, *, nested: bool) -> Provenance:
        found, target = attribute(module, str(node.target)), str(node.target)
        if not isinstance(found, Tensor):
            return NOTHING
        if not isinstance(found, nn.Parameter):
            self.shapes[target] = tuple(found.shape)
            return Provenance(constant=target)
        reader = next(iter(node.users), None)
        if reader is not None:
            self.read.setdefault(id(found), reader)
        origin = Origin(found, target, tuple((axis,) for axis in range(found.ndim)))
        if nested:
            self.meetings.append(Meeting("never", node, origin, reason=NESTED))
        return Provenance(origins={id(found): origin})

    def _visit(self, scope: Scope, node: Node) -> Provenance:
        if isinstance(node.target, torch._ops.OpOverload) and scope.only_activations(node):
            return FED  # Most nodes: no Parameter is near.
        graphs = nested_graphs(scope.module, node)
        if graphs:
            return self._enter(scope, node, graphs)
        if node.target is operator.getitem:
            return scope.element(node)
        places = ops.layer_places(node)
        if places:
            return self._layer(scope, node, places)
        operands = labelled_operands(node)
        if operands:
            return self._product(scope, node, operands)
        if node.target in ops.GATHERS:
            return self._gather(scope, node)
        return self._elementwise(scope, node)

    def _layer(self, scope: Scope, node: Node, places: tuple[ops.OperandPlace, ...]) -> Provenance:
        weights = [(ops.operand(node, place), place) for place in places]
        for weight, place in weights:
            if isinstance(weight, Node):
                labels = place.labels(len(example_shape(weight) or ()))
                self._read_as_weight(scope, node, weight, labels)
        taken = {id(weight) for weight, _place in weights}
        for source in node.all_input_nodes:
            if id(source) not in taken and not scope.value(source).fed:
                reason = f"is an input of {node.target}, not its weight"
                self._aside(node, scope.value(source), reason)
        whole = scope.merged(node)
        return FED if whole.fed else whole.opaque()

    def _read_as_weight(self, scope: Scope, node: Node, weight: Node, labels: str) -> None:
        value = scope.value(weight)
        for origin in value.origins.values():
            self.meetings.append(Meeting("use", node, origin, labels, weight))
        if value.constant and not (value.fed or value.made or value.origins):
            self._constant(node, value)

    def _constant(self, node: Node, value: Provenance) -> None:
        reason = f"is a buffer or constant read by {node.target}, not a trainable Parameter"
        self.meetings.append(Meeting("aside", node, None, reason=reason, constant=value.constant))

    def _product(self, scope: Scope, node: Node, operands: list[tuple[Node, str]]) -> Provenance:
        values = [scope.value(given) for given, _labels in operands]
        for place, (given, labels) in enumerate(operands):
            beside = merged(v for index, v in enumerate(values) if index != place)
            for origin in values[place].origins.values():
                self._judge(node, given, labels, origin, values[place], beside)
        whole = merged(values)
        if whole.fed and values[0] == Provenance(constant=values[0].constant) != NOTHING:
            self._constant(node, values[0])
        if whole.fed:
            return FED
        if whole.made or len(whole.origins) != 1:
            return whole.opaque()
        # One Parameter and constants: still a linear image of that Parameter.
        return merged(handed_on(node, given, scope.value(given)) for given, _labels in operands)

    def _judge(
        self,
        node: Node,
        given: Node,
        labels: str,
        origin: Origin,
        value: Provenance,
        beside: Provenance,
    ) -> None:
        """One Parameter in one operand of a product: is that operand the weight?"""
        if value.fed and not origin.selected:
            return  # An activation that a Parameter was added to.
        if "o" not in labels and "i" not in labels:
            reason = f"enters {node.target} without a sum: it scales the input, it is no matrix"
            self.meetings.append(Meeting("aside", node, origin, reason=reason))
        elif beside.fed:
            self.meetings.append(Meeting("use", node, origin, labels, given))
        elif beside.others(origin.parameter):
            self.meetings.append(Meeting("aside", node, origin, reason=ops.NO_INPUT))
        else:
            self.meetings.append(Meeting("weak", node, origin, labels, given))

    def _gather(self, scope: Scope, node: Node) -> Provenance:
        """Rows of a table, or matrices of a stack: (n, a, b)[ids] is a matrix for each id."""
        table = next(iter(node.all_input_nodes), None)
        if table is None:
            return NOTHING
        value = scope.value(table)
        index = merged(scope.value(n) for n in node.all_input_nodes if n is not table)
        if node.target in ops.LOOKUP_OPS:
            for origin in value.origins.values():
                self.meetings.append(Meeting("lookup", node, origin, operand=table))
            return FED if index.fed else value.opaque()
        if value.fed or not value.origins:
            return merged([value, index])
        stack = (
            len(example_shape(table) or ()) > 2
            and (example_shape(node) or ())[-2:] == ((example_shape(table) or ())[-2:])
        )
        if index.fed and not stack:
            return FED
        picked = {
            key: replace(o, selected=stack and index.fed, gathered=not stack)
            for key, o in handed_on(node, table, value).origins.items()
        }
        return Provenance(index.fed, value.made, picked)

    def _elementwise(self, scope: Scope, node: Node) -> Provenance:
        sources = ops.value_operands(node)
        whole = merged(scope.value(source) for source in sources)
        if not whole.origins:
            return FED if whole.fed else whole
        reason = ops.foreign(node)
        if reason is not None:
            kind = "never" if reason == ops.FUSED_RECURRENT else "aside"
            for origin in whole.origins.values():
                if origin.parameter.ndim > 1:  # Biases and norms are no matrices.
                    self.meetings.append(Meeting(kind, node, origin, reason=reason))
            return whole.opaque()
        shape = example_shape(node)
        for source in sources:
            value = scope.value(source)
            if value.fed and not value.origins and example_shape(source) == shape:
                return FED  # An activation: what was added to it is no weight.
        return merged(handed_on(node, source, scope.value(source)) for source in sources)

    def _aside(self, node: Node, value: Provenance, reason: str) -> None:
        for origin in value.origins.values():
            if origin.parameter.ndim > 1 and not origin.scales:
                self.meetings.append(Meeting("aside", node, origin, reason=reason))

    def _enter(self, scope: Scope, call: Node, graphs: list[Nested]) -> Provenance:
        whole = scope.merged(call)
        results = []
        for nested in graphs:
            given = self._bound(scope, call, nested, whole)
            results.append(self.walk(nested.module, given))
        if ops.short_name(call) in ("while_loop", "while_loop_stack_output"):
            results = results[1:]  # The first graph is the condition.
        if any(nested.operands is None for nested in graphs):
            return whole.opaque()
        several = [merged(values) for values in zip(*results, strict=False)]
        return Provenance(whole.fed, whole.made, parts=tuple(several))

    def _bound(
        self, scope: Scope, call: Node, nested: Nested, whole: Provenance
    ) -> tuple[Provenance, ...]:
        if nested.operands is None:
            reason = f"is read inside {call.target}, a nested graph that this tool cannot follow"
            self._aside(call, whole, reason)
            places = [n for n in nested.module.graph.nodes if n.op == "placeholder"]
            return tuple(whole.opaque() for _place in places)
        name = ops.short_name(call)
        states = _length(call, 1 if name == "scan" else 2) if name in LOOPS else 0
        slices = _length(call, 2 if name == "scan" else 1) if name in _SLICED else 0
        values = []
        for place, given in enumerate(nested.operands):
            value = scope.value(given)
            if place < states:
                self._aside(call, value, f"is the first state of {name}, not a weight")
                value = FED  # It meets what the loop makes of the inputs.
            elif place < states + slices:
                value = _sliced(value)
            values.append(value)
        return tuple(values)


def _length(call: Node, index: int) -> int:
    argument = call.args[index] if len(call.args) > index else ()
    return len(pytree.tree_leaves(argument))


def _sliced(value: Provenance) -> Provenance:
    """What a loop over the first axis sees of a value."""
    return replace(
        value, origins={k: replace(o, layout=o.layout[1:]) for k, o in value.origins.items()}
    )


def meetings(module: GraphModule) -> Flow:
    """Walk over one phase's graph and all graphs nested in it."""
    flow = Flow()
    flow.walk(module)
    return flow
