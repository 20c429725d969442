"""What a picture of a difference shows: the boxes and arrows around it, on both sides.

The frame reaches two edges up and one down from the node where the sides differ. A box or an arrow
is marked when the other side has no like, where names do not count.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Literal

from opdf_compile.artefacts import LinkedModel, Node, Value
from opdf_compile.parity.structure.canonical import settings, show_attribute
from opdf_compile.parity.structure.differences import Difference

VertexKind = Literal["node", "input", "constant", "output", "more"]

UP, DOWN = 2, 1
# More boxes in a row would be too small to read; the rest is counted in a box of its own.
WIDEST = 4
_LONGEST = 22
# Kinds of differences that the node in the middle has itself; the others sit on an edge.
_AT_THE_NODE = ("operator", "attribute", "outputs", "subgraph", "function")


@dataclass(frozen=True)
class Vertex:
    """One box: what it is, its lines of text, and whether the two sides differ there."""

    key: str
    kind: VertexKind
    title: str
    detail: str = ""
    name: str = ""
    differs: bool = False

    @property
    def meaning(self) -> tuple[str, str, str]:
        """What is equal for equal boxes: names of constants and values do not count."""
        return (self.kind, self.title if self.kind == "node" else "", self.detail)


@dataclass(frozen=True)
class Edge:
    """An arrow from one box to another; `slot` is the place among the reader's inputs."""

    source: str
    target: str
    slot: int
    differs: bool = False


@dataclass(frozen=True)
class Surroundings:
    """The neighbourhood on one side; empty where that side has nothing there."""

    vertices: tuple[Vertex, ...] = ()
    edges: tuple[Edge, ...] = ()


def frame_difference(
    difference: Difference, candidate: LinkedModel, reference: LinkedModel
) -> tuple[Surroundings, Surroundings]:
    """Collect the neighbourhood of a difference on both sides, the candidate's first."""
    centres = [
        node or _centre(view, name)
        for node, view, name in zip(
            difference.nodes, (candidate, reference), difference.where, strict=True
        )
    ]
    # What is one edge outside the frame on one side is no difference on the other.
    frames = [_Collector(centre, UP, DOWN).side() for centre in centres]
    wider = [_Collector(centre, UP + 2, DOWN + 1).side() for centre in centres]
    itself = difference.kind in _AT_THE_NODE
    return (
        _marked(frames[0], wider[1], itself),
        _marked(frames[1], wider[0], itself),
    )


def _centre(view: LinkedModel, name: str) -> Node | None:
    """The node that makes or reads the value of that name; the last node for want of any."""
    for graph in view.graphs:
        value = graph.values.get(name)
        if value is not None and (value.node or value.readers):
            return value.node or value.readers[0][0]
    made = [value.node for value in view.main.outputs if value.node is not None]
    return made[0] if made else None


class _Collector:
    """Walks outwards from a node and writes down boxes and arrows."""

    def __init__(self, centre: Node | None, up: int, down: int) -> None:
        self.centre = centre
        self.up, self.down = up, down
        self.vertices: dict[str, Vertex] = {}
        self.edges: list[Edge] = []

    def side(self) -> Surroundings:
        if self.centre is not None:
            key = self._up(self.centre, self.up)
            centre = self.vertices[key]
            self.vertices[key] = replace(centre, name=_short(self.centre.label))
            self._down(self.centre, self.down)
        return Surroundings(tuple(self.vertices.values()), tuple(self.edges))

    def _up(self, node: Node, steps: int) -> str:
        key = _node_key(node)
        known = key in self.vertices
        self.vertices.setdefault(key, Vertex(key, "node", node.op, _attributes(node)))
        if known or not steps:
            return key
        shown = node.inputs if len(node.inputs) <= WIDEST else node.inputs[: WIDEST - 1]
        for slot, value in enumerate(shown):
            source = self._source(value, steps - 1)
            if source:
                self.edges.append(Edge(source, key, slot))
        if len(shown) < len(node.inputs):
            more = f"{key} more"
            self.vertices[more] = Vertex(more, "more", f"{len(node.inputs) - len(shown)} more")
            self.edges.append(Edge(more, key, len(shown)))
        return key

    def _source(self, value: Value, steps: int) -> str:
        if value.node is not None:
            return self._up(value.node, steps)
        if value.input_of is None and value.constant is None:
            return ""
        kind: VertexKind = "input" if value.input_of is not None else "constant"
        key = f"{kind} {value.name}"
        detail = "" if value.constant is None else _constant_text(value)
        self.vertices[key] = Vertex(key, kind, _short(value.name), detail)
        return key

    def _down(self, node: Node, steps: int) -> None:
        key = _node_key(node)
        readers = [(reader, slot) for v in node.outputs for reader, slot in v.readers]
        for reader, slot in readers[:WIDEST]:
            self.edges.append(Edge(key, self._up(reader, 0), slot))
            if steps > 1:
                self._down(reader, steps - 1)
        if len(readers) > WIDEST:
            more = f"{key} more readers"
            self.vertices[more] = Vertex(more, "more", f"{len(readers) - WIDEST} more")
            self.edges.append(Edge(key, more, 0))
        for value in node.outputs:
            if value.output_of:
                out = f"output {value.name}"
                self.vertices[out] = Vertex(out, "output", _short(value.name), "output")
                self.edges.append(Edge(key, out, 0))


def _marked(side: Surroundings, other: Surroundings, itself: bool) -> Surroundings:
    """Mark what has no like on the other side, and the centre where it is what differs."""
    if not other.vertices:
        return side
    # Like boxes pair off by number: of two equal ones here and one there, the second differs.
    spare = Counter(vertex.meaning for vertex in other.vertices)
    vertices = []
    for place, vertex in enumerate(side.vertices):
        if itself and place == 0:
            vertices.append(replace(vertex, differs=True))
            continue
        differs = vertex.kind != "more" and spare[vertex.meaning] <= 0
        spare[vertex.meaning] -= 1
        vertices.append(replace(vertex, differs=differs))
    ends = ({vertex.key: vertex.meaning for vertex in part.vertices} for part in (side, other))
    ours, theirs = ends
    arrows = Counter((theirs[e.source], theirs[e.target], e.slot) for e in other.edges)
    edges = []
    for edge in side.edges:
        meaning = (ours[edge.source], ours[edge.target], edge.slot)
        hidden = "more" in (meaning[0][0], meaning[1][0])
        edges.append(replace(edge, differs=not hidden and arrows[meaning] <= 0))
        arrows[meaning] -= 1
    return Surroundings(tuple(vertices), tuple(edges))


def _node_key(node: Node) -> str:
    return f"{id(node.graph)}/{next((o for o in node.proto.output if o), node.label)}"


def _attributes(node: Node) -> str:
    """The attributes that are not at their defaults, in a few characters."""
    shown = [f"{k}={show_attribute(v)}" for k, v in settings(node).items()]
    return "\n".join(_short(text) for text in shown[:4])


def _constant_text(value: Value) -> str:
    constant = value.constant
    if constant is None or constant.parameter or not constant.is_small:
        return str(constant)
    return f"{constant}\n= {_short(constant.numbers())}"


def _short(text: str) -> str:
    """The end of a name tells more than its beginning."""
    return text if len(text) <= _LONGEST else "..." + text[3 - _LONGEST :]
