"""The values of one graph's nodes, with what was written into a tensor after it was made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch.fx import GraphModule, Node

from opdf_compile.graph.provenance import FED, NOTHING, Provenance, merged


@dataclass
class Scope:
    """What is known so far.

    Attributes:
        module: The graph, and what its get_attrs read.
        known: By node.
        base: For a view the node whose memory it shows.
        written: By base, what ops wrote in place.
    """

    module: GraphModule
    known: dict[Node, Provenance] = field(default_factory=dict)
    base: dict[Node, Node] = field(default_factory=dict)
    written: dict[Node, Provenance] = field(default_factory=dict)

    def value(self, given: Any) -> Provenance:
        """What is known of an argument, with what was written into it since."""
        if not isinstance(given, Node):
            return NOTHING
        value = self.known.get(given, NOTHING)
        late = self.written.get(self.base.get(given, given))
        return value if late is None else merged([value, late])

    def merged(self, node: Node) -> Provenance:
        """What is known of all that a node reads."""
        return merged(self.value(source) for source in node.all_input_nodes)

    def only_activations(self, node: Node) -> bool:
        """Whether an op reads activations (and sizes), and nothing else."""
        values = [self.value(source) for source in node.all_input_nodes]
        fed = [value is FED for value in values]
        return any(fed) and all(f or v is NOTHING for f, v in zip(fed, values, strict=True))

    def element(self, node: Node) -> Provenance:
        """One element of a tuple."""
        source, index = node.args[0], node.args[1]
        value = self.value(source)
        if value.parts:
            place = index if isinstance(index, int) and index < len(value.parts) else 0
            return value.parts[place]
        return value

    def target_of_write(self, node: Node) -> Node | None:
        """The tensor under the views that an op writes in place, once it was put; or None."""
        schema = getattr(node.target, "_schema", None)
        return self.base.get(node) if schema is not None and schema.is_mutable else None

    def put(self, node: Node, value: Provenance) -> None:
        """Keep a node's value; what an op writes in place belongs to the tensor under the view."""
        self.known[node] = value
        schema = getattr(node.target, "_schema", None)
        first = node.args[0] if node.args else None
        if schema is None or not isinstance(first, Node):
            return
        if not schema.arguments or schema.arguments[0].alias_info is None:
            return
        base = self.base[node] = self.base.get(first, first)
        if schema.is_mutable and value is not NOTHING:
            self.written[base] = merged([self.written.get(base, NOTHING), value])
