"""A picture of the first difference: both neighbourhoods side by side.

The reference is on the left and the candidate on the right, two edges up and one down from the node
where they differ. What only one side has is vermilion; everything else is grey. Arrows run from top
to bottom, and a node stands in the layer below the lowest one that it reads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from opdf_compile.verify.structure.canonical import show_attribute
from opdf_compile.verify.structure.differences import Difference
from opdf_compile.verify.structure.graph_view import Node, Value, View

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Kind = Literal["node", "input", "constant", "output", "more"]

UP, DOWN = 2, 1
# Kinds of differences that the node in the middle has itself; the others sit on an edge.
_AT_THE_NODE = ("operator", "attribute", "outputs", "subgraph", "function")
# More boxes in a row would be too small to read; the rest is counted in a box of its own.
WIDEST = 4
_LONGEST = 22

_FILL: Mapping[str, str] = {
    "node": "#eef3f8",
    "input": "#e8f3ec",
    "constant": "#f6f6f6",
    "output": "#e8f3ec",
    "more": "#ffffff",
}
_DIFFERS, _DIFFERS_FILL, _EDGE, _INK, _FAINT = "#d55e00", "#fdebdf", "#8a97a6", "#222222", "#6b6b6b"


@dataclass(frozen=True)
class Vertex:
    """One box: what it is, its lines of text, and whether the two sides differ there."""

    key: str
    kind: Kind
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
class Side:
    """The neighbourhood on one side; empty where that side has nothing there."""

    vertices: tuple[Vertex, ...] = ()
    edges: tuple[Edge, ...] = ()


@dataclass(frozen=True)
class Neighbourhood:
    """Both sides of the first difference, as plain boxes and arrows.

    Attributes:
        sentence: What differs.
        candidate: The candidate's side.
        reference: The reference's side.
    """

    sentence: str
    candidate: Side
    reference: Side

    def draw(self, figure: Figure) -> None:
        """Draw both sides onto an empty figure; about 11 by 6 inches suit.

        Args:
            figure: A matplotlib Figure (or SubFigure) without axes.
        """
        import textwrap

        left, right = figure.subplots(1, 2)
        _draw_side(left, self.reference, "reference")
        _draw_side(right, self.candidate, "candidate")
        width = max(60, int(figure.bbox.width / figure.dpi * 13))
        text = "\n".join(textwrap.wrap(self.sentence, width)[:3])
        figure.suptitle(text, x=0.012, ha="left", fontsize=10.5, color=_INK)


def picture_of(difference: Difference, candidate: View, reference: View) -> Neighbourhood:
    """Collect the neighbourhood of a difference on both sides.

    Args:
        difference: Where to look.
        candidate: The candidate's linked graph.
        reference: The reference's linked graph.
    """
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
    marked = [_marked(frames[place], wider[1 - place], itself) for place in (0, 1)]
    return Neighbourhood(difference.sentence, *marked)


def _centre(view: View, name: str) -> Node | None:
    """The node that makes or reads the value of that name; the last node for want of any."""
    for scope in view.scopes:
        value = scope.values.get(name)
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

    def side(self) -> Side:
        if self.centre is not None:
            key = self._up(self.centre, self.up)
            centre = self.vertices[key]
            self.vertices[key] = replace(centre, name=_short(self.centre.label))
            self._down(self.centre, self.down)
        return Side(tuple(self.vertices.values()), tuple(self.edges))

    def _up(self, node: Node, steps: int) -> str:
        key = _node_key(node)
        known = key in self.vertices
        self.vertices.setdefault(key, Vertex(key, "node", node.proto.op_type, _attributes(node)))
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
        if value.scope is None and value.constant is None:
            return ""
        kind: Kind = "input" if value.scope is not None else "constant"
        key = f"{kind} {value.name}"
        detail = "" if value.constant is None else _constant_text(value)
        self.vertices[key] = Vertex(key, kind, _short(value.name), detail)
        return key

    def _down(self, node: Node, steps: int) -> None:
        key = _node_key(node)
        readers = [(reader, slot) for v in node.outputs for reader, slot in v.readers]
        for reader, slot in readers[:WIDEST]:
            below = _node_key(reader)
            text = Vertex(below, "node", reader.proto.op_type, _attributes(reader))
            self.vertices.setdefault(below, text)
            self.edges.append(Edge(key, below, slot))
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


def _marked(side: Side, other: Side, itself: bool) -> Side:
    """Mark what has no like on the other side, and the centre where it is what differs."""
    if not other.vertices:
        return side
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
    return Side(tuple(vertices), tuple(edges))


def _node_key(node: Node) -> str:
    return f"{id(node.scope)}/{next((o for o in node.proto.output if o), node.label)}"


def _attributes(node: Node) -> str:
    """The attributes that are not at their defaults, in a few characters."""
    shown = [f"{k}={show_attribute(v)}" for k, v in node.settings().items()]
    return "\n".join(_short(text) for text in shown[:4])


def _constant_text(value: Value) -> str:
    constant = value.constant
    if constant is None or constant.parameter or not constant.is_small:
        return str(constant)
    return f"{constant}\n= {_short(constant.numbers())}"


def _short(text: str) -> str:
    """The end of a name tells more than its beginning."""
    return text if len(text) <= _LONGEST else "..." + text[3 - _LONGEST :]


def _layers(side: Side) -> dict[str, tuple[float, float]]:
    """A place for each box: layers by the longest path, each row in the order of its readers."""
    import networkx as nx

    graph = nx.MultiDiGraph()
    graph.add_nodes_from(v.key for v in side.vertices)
    graph.add_edges_from((e.source, e.target) for e in side.edges)
    height: dict[str, int] = {}
    for key in reversed(list(nx.topological_sort(graph))):
        height[key] = 1 + max((height[below] for below in graph.successors(key)), default=-1)
    rows: dict[int, list[str]] = {}
    for key, level in height.items():
        rows.setdefault(level, []).append(key)
    slots = {(e.source, e.target): e.slot for e in reversed(side.edges)}
    places: dict[str, tuple[float, float]] = {}
    for level in sorted(rows):
        wish = {
            key: _mean([places[b][0] + 0.1 * slots[key, b] for b in graph.successors(key)])
            for key in rows[level]
        }
        row = sorted(rows[level], key=lambda key: wish[key])
        for place, key in enumerate(row):
            places[key] = (place - (len(row) - 1) / 2, float(level))
    return places


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers) if numbers else 0.0


def _draw_side(axes: Axes, side: Side, name: str) -> None:
    axes.set_axis_off()
    axes.set_title(name, loc="left", fontsize=11, fontweight="bold", color=_INK)
    if not side.vertices:
        axes.text(0.5, 0.5, "nothing there", ha="center", va="center", color=_FAINT)
        return
    places = _layers(side)
    columns = max(abs(x) for x, _ in places.values()) + 0.62
    axes.set_xlim(-columns, columns)
    axes.set_ylim(-0.6, max(y for _, y in places.values()) + 0.6)
    size = max(5.0, min(8.5, 15.0 / columns))
    boxes = {v.key: _draw_vertex(axes, v, places[v.key], size) for v in side.vertices}
    kinds = {v.key: v.kind for v in side.vertices}
    for edge in side.edges:
        beside = [e.slot for e in side.edges if (e.source, e.target) == (edge.source, edge.target)]
        named = edge.slot == beside[0] and kinds[edge.target] != "output"
        slots = ", ".join(map(str, beside)) if named else ""
        _draw_edge(axes, edge, boxes, places, size, slots)


def _draw_vertex(axes: Axes, vertex: Vertex, place: tuple[float, float], size: float) -> Any:
    text = "\n".join(line for line in (vertex.title, vertex.name, vertex.detail) if line)
    return axes.annotate(
        text,
        place,
        ha="center",
        va="center",
        fontsize=size,
        color=_INK if vertex.kind != "more" else _FAINT,
        linespacing=1.25,
        zorder=3,
        bbox={
            "boxstyle": "round,pad=0.35,rounding_size=0.25",
            "facecolor": _DIFFERS_FILL if vertex.differs else _FILL[vertex.kind],
            "edgecolor": _DIFFERS if vertex.differs else _EDGE,
            "linewidth": 1.8 if vertex.differs else 0.8,
            "linestyle": "--" if vertex.kind == "more" else "-",
        },
    )


def _draw_edge(
    axes: Axes,
    edge: Edge,
    boxes: Mapping[str, Any],
    places: Mapping[str, tuple[float, float]],
    size: float,
    slots: str,
) -> None:
    from matplotlib.patches import FancyArrowPatch

    source, target = places[edge.source], places[edge.target]
    # An arrow past a layer in between bends, so that it does not run through a box there.
    bend = 0.0 if source[1] - target[1] <= 1 else (0.25 if source[0] <= target[0] else -0.25)
    arrow = FancyArrowPatch(
        source,
        target,
        arrowstyle="-|>",
        mutation_scale=9,
        patchA=boxes[edge.source].get_bbox_patch(),
        patchB=boxes[edge.target].get_bbox_patch(),
        connectionstyle=f"arc3,rad={bend}",
        color=_DIFFERS if edge.differs else _EDGE,
        linewidth=1.8 if edge.differs else 1.0,
        zorder=2,
    )
    axes.add_patch(arrow)
    if slots:
        middle = ((source[0] + target[0]) / 2 + 0.05, (source[1] + target[1]) / 2)
        axes.text(*middle, slots, fontsize=size - 1, color=_FAINT, zorder=4)
