"""A picture of the first difference: both neighbourhoods side by side.

The reference is on the left and the candidate on the right, two edges up and one down from the node
where they differ. What only one side has is vermilion; everything else is grey. Arrows run from top
to bottom, and a node stands in the layer below the lowest one that it reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from opdf_compile.parity.structure.frame import Edge, Surroundings, Vertex

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FILL: Mapping[str, str] = {
    "node": "#eef3f8",
    "input": "#e8f3ec",
    "constant": "#f6f6f6",
    "output": "#e8f3ec",
    "more": "#ffffff",
}
_DIFFERS, _DIFFERS_FILL, _EDGE, _INK, _FAINT = "#d55e00", "#fdebdf", "#8a97a6", "#222222", "#6b6b6b"


@dataclass(frozen=True)
class Neighbourhood:
    """Both sides of the first difference, as plain boxes and arrows.

    Attributes:
        sentence: What differs.
        candidate: The candidate's side.
        reference: The reference's side.
    """

    sentence: str
    candidate: Surroundings
    reference: Surroundings

    def draw(self, figure: Figure) -> None:
        """Draw both sides onto an empty figure; about 11 by 6 inches suit."""
        import textwrap

        left, right = figure.subplots(1, 2)
        _draw_side(left, self.reference, "reference")
        _draw_side(right, self.candidate, "candidate")
        width = max(60, int(figure.bbox.width / figure.dpi * 13))
        text = "\n".join(textwrap.wrap(self.sentence, width)[:3])
        figure.suptitle(text, x=0.012, ha="left", fontsize=10.5, color=_INK)


def _layers(side: Surroundings) -> dict[str, tuple[float, float]]:
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
        # Above the middle of its readers; a tenth of a place for each input keeps the operands of a
        # reader in the order in which it takes them.
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


def _draw_side(axes: Axes, side: Surroundings, name: str) -> None:
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
