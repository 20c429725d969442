"""What each constant of a graph is for: a weight of a product, a table, or anything else.

Only what the matcher can take is trainable, so that a training changes matched weights alone.
What looks like a weight and cannot be taken is a frozen Parameter: the matcher names the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from opdf_compile.io.onnx_student.keys import Place
from opdf_compile.io.onnx_student.nodes import Graph, Node
from opdf_compile.io.onnx_student.operator_table import find

Role = Literal["weight", "frozen", "trained", "buffer"]
_WEIGHT_PLACES = {"MatMul": (0, 1), "Gemm": (0, 1), "Conv": (1,), "ConvTranspose": (1,)}
_VIEWS = ("Identity", "Cast", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze")
RECURRENT = ("LSTM", "GRU", "RNN")
# Inputs that are statistics and settings of an operator, whatever their size.
_SETTINGS: Mapping[str, tuple[int, ...]] = {
    "BatchNormalization": (3, 4),
    "QuantizeLinear": (1, 2),
    "DequantizeLinear": (1, 2),
}


@dataclass
class _Readers:
    product: bool = False
    columns: bool = False
    table: bool = False
    other_weight: bool = False
    value: bool = False


@dataclass
class _Walk:
    found: dict[Place, _Readers] = field(default_factory=dict)

    def graph(self, graph: Graph, origins: dict[str, Place], fed: set[str]) -> None:
        for constant in graph.constants.values():
            origins[constant.name] = (constant.scope, constant.name)
            fed.discard(constant.name)
        for node in graph.nodes:
            self._node(node, origins, fed)

    def _node(self, node: Node, origins: dict[str, Place], fed: set[str]) -> None:
        for place, name in enumerate(node.inputs):
            if name in origins:
                self._read(node, place, origins[name], fed)
        for inner in node.graphs.values():
            self.graph(inner, dict(origins), set(fed))
        data = any(name in fed for name in node.inputs) or bool(node.graphs)
        for output in node.outputs:
            origins.pop(output, None)
            if data:
                fed.add(output)
            elif node.op in _VIEWS and node.inputs[0] in origins:
                origins[output] = origins[node.inputs[0]]

    def _read(self, node: Node, place: int, origin: Place, fed: set[str]) -> None:
        readers = self.found.setdefault(origin, _Readers())
        if node.op in _VIEWS and place == 0:
            return  # What reads the view counts.
        if place in _WEIGHT_PLACES.get(node.op, ()):
            beside = node.inputs[1 - place]
            readers.product |= beside in fed
            readers.columns |= _columns(node, place)
            readers.other_weight |= beside not in fed
        elif node.op in RECURRENT and place in (1, 2) or node.op == "Einsum":
            readers.other_weight = True
        elif node.op == "Gather" and place == 0:
            readers.table = True
        entry = find(node)
        setting = place in entry.numbers | entry.either
        readers.value |= not setting and place not in _SETTINGS.get(node.op, ())


def _columns(node: Node, place: int) -> bool:
    """Whether the out features are the weight's columns."""
    if node.op in ("Conv", "ConvTranspose") or place == 0:
        return False
    return not node.get("transB", 0)


def roles(
    graph: Graph, ranks: Mapping[Place, int], *, train_all: bool
) -> dict[Place, tuple[Role, bool]]:
    """The role of every floating-point constant of more than one element.

    Args:
        graph: The graph.
        ranks: How many axes each of those constants has.
        train_all: Whether biases and norm scales are trained too.

    Returns:
        The role, and whether a weight's out features are its columns.
    """
    walk = _Walk()
    walk.graph(graph, {}, set(graph.inputs))
    found = {place: walk.found.get(place, _Readers()) for place in ranks}
    return {
        place: (_role(found[place], rank, train_all), found[place].columns)
        for place, rank in ranks.items()
    }


def _role(readers: _Readers, rank: int, train_all: bool) -> Role:
    if train_all and (readers.value or readers.table):
        return "weight" if readers.product and rank > 1 else "trained"
    matrix = rank > 1
    if readers.product and matrix and not readers.table and not readers.other_weight:
        return "weight"
    if matrix and (readers.product or readers.table or readers.other_weight):
        return "frozen"
    return "buffer"
