"""What each constant of a graph is for: a weight of a product, a table, or anything else.

Only what the matcher can take is trainable, so that a training changes matched weights alone.
What looks like a weight and cannot be taken is a frozen Parameter: the matcher names the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from opdf_compile.artefacts import Address, Graph, Node, Value
from opdf_compile.io.onnx_student.operator_table import find

ConstantRole = Literal["weight", "frozen", "trained", "buffer"]
_WEIGHT_PLACES = {"MatMul": (0, 1), "Gemm": (0, 1), "Conv": (1,), "ConvTranspose": (1,)}
_VIEWS = ("Identity", "Cast", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze")
RECURRENT_OPS = ("LSTM", "GRU", "RNN")
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
    groups: int = 1


@dataclass
class _Walk:
    """What was seen so far: the constant that a value shows, and what an input reaches."""

    found: dict[Address, _Readers] = field(default_factory=dict)
    origins: dict[Value, Address] = field(default_factory=dict)
    fed: set[Value] = field(default_factory=set)

    def graph(self, graph: Graph) -> None:
        for value in graph.values.values():
            if value.constant:
                self.origins[value] = value.constant.address
            elif value.input_of:
                self.fed.add(value)
        for node in graph.nodes:
            self._node(node)

    def _node(self, node: Node) -> None:
        for place, value in enumerate(node.inputs):
            if value in self.origins:
                self._read(node, place, self.origins[value])
        for inner in node.inner:
            self.graph(inner)
        if node.subgraphs or any(value in self.fed for value in node.inputs):
            self.fed.update(node.outputs)
        elif node.op in _VIEWS and node.inputs[0] in self.origins:
            self.origins.update(dict.fromkeys(node.outputs, self.origins[node.inputs[0]]))

    def _read(self, node: Node, place: int, origin: Address) -> None:
        readers = self.found.setdefault(origin, _Readers())
        if node.op in _VIEWS and place == 0:
            return  # What reads the view counts.
        if place in _WEIGHT_PLACES.get(node.op, ()):
            beside = node.inputs[1 - place]
            readers.product |= beside in self.fed
            readers.columns |= _columns(node, place)
            readers.groups = node.attributes.get("group", 1)
            readers.other_weight |= beside not in self.fed
        elif node.op in RECURRENT_OPS and place in (1, 2) or node.op == "Einsum":
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
    return not node.attributes.get("transB", 0)


def roles(
    graph: Graph, ranks: Mapping[Address, int], *, train_all: bool
) -> dict[Address, tuple[ConstantRole, bool, int]]:
    """The role of every floating-point constant of more than one element.

    Args:
        graph: The graph.
        ranks: How many axes each of those constants has.
        train_all: Whether biases and norm scales are trained too.

    Returns:
        The role, whether a weight's out features are its columns, and a convolution's groups.
    """
    walk = _Walk()
    walk.graph(graph)
    found = {address: walk.found.get(address, _Readers()) for address in ranks}
    return {
        address: (_role(seen, ranks[address], train_all), seen.columns, seen.groups)
        for address, seen in found.items()
    }


def _role(readers: _Readers, rank: int, train_all: bool) -> ConstantRole:
    if train_all and (readers.value or readers.table):
        return "weight" if readers.product and rank > 1 else "trained"
    matrix = rank > 1
    if readers.product and matrix and not readers.table and not readers.other_weight:
        return "weight"
    if matrix and (readers.product or readers.table or readers.other_weight):
        return "frozen"
    return "buffer"
