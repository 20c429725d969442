"""What a structural comparison found, in words."""

from __future__ import annotations

from dataclasses import dataclass, field

from opdf_compile.artefacts import Graph, Node, Value

# A reader needs the first few; one early difference can shift everything behind it.
MOST_DIFFERENCES = 20


@dataclass(frozen=True)
class Difference:
    """One place where candidate and reference differ.

    Attributes:
        kind: activation or bias (one that was lost), operator, attribute, inputs, outputs, edge,
            constant, sharing, dead, unused, interface, opset, function or subgraph.
        where: Names on both sides, candidate first; empty where a side has nothing there.
        sentence: What differs.
        candidate: The candidate's node with its neighbours, one line.
        reference: The same for the reference.
        nodes: The node on both sides that a picture should show, candidate first.
    """

    kind: str
    where: tuple[str, str]
    sentence: str
    candidate: str = ""
    reference: str = ""
    nodes: tuple[Node | None, Node | None] = field(default=(None, None), repr=False, compare=False)

    def __str__(self) -> str:
        """The sentence, then both neighbourhoods."""
        lines = [self.sentence]
        if self.candidate:
            lines.append(f"  candidate: {self.candidate}")
        if self.reference:
            lines.append(f"  reference: {self.reference}")
        return "\n".join(lines)


def at_nodes(
    kind: str,
    candidate: Node,
    reference: Node,
    sentence: str,
    readers: tuple[Node, Node] | None = None,
) -> Difference:
    """Make a difference that sits at two nodes, or where their readers take them."""
    return Difference(
        kind,
        (candidate.label, reference.label),
        sentence,
        describe_node(candidate),
        describe_node(reference),
        readers or (candidate, reference),
    )


def at_values(
    kind: str,
    candidate: Value,
    reference: Value,
    sentence: str,
    readers: tuple[Node, Node] | None = None,
) -> Difference:
    """Make a difference that sits at two values, which `readers` read."""
    return Difference(
        kind,
        (_name(candidate), _name(reference)),
        sentence,
        describe_value(candidate),
        describe_value(reference),
        readers or (candidate.node, reference.node),
    )


def _name(value: Value) -> str:
    return value.node.label if value.node else value.name


def describe_value(value: Value) -> str:
    """A value with what makes it and what reads it."""
    if value.node is not None:
        return describe_node(value.node)
    return f"{value}{_readers([value])}"


def describe_node(node: Node) -> str:
    """A node with its neighbours on one line: ``Sub 's'(Relu 'a', input 'x') -> Add 't'``."""
    inputs = ", ".join(str(value) for value in node.inputs)
    return f"{node}({inputs}){_readers(list(node.outputs))}"


def _readers(values: list[Value]) -> str:
    names = [str(reader) for value in values for reader, _ in value.readers]
    names += [f"output {value.name!r}" for value in values if value.output_of]
    if not names:
        return " -> nothing"
    shown = ", ".join(names[:4])
    return f" -> {shown}" + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def describe_graph(graph: Graph) -> str:
    """Name a graph for a message."""
    return f"local function {graph.name!r}" if graph.function else f"graph {graph.name!r}"
