"""The surroundings of one node as a NetworkX graph, for drawing and for reading."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from opdf_compile.errors import InputError
from opdf_compile.parity.model_file import ModelFile
from opdf_compile.parity.structure.graph_view import Node, Value, View
from opdf_compile.parity.structure.linking import build_view

if TYPE_CHECKING:
    import networkx as nx
    import onnx


def neighbourhood(
    model: onnx.ModelProto | View | str | os.PathLike[str], node: str, *, radius: int = 1
) -> nx.DiGraph:
    """Return a node with everything at most `radius` edges away.

    Args:
        model: A model, a linked view of one, or the path of a file.
        node: The node's name, or that of its first output where it has none.
        radius: Edges to follow upstream and downstream.

    Returns:
        A directed graph whose vertices carry `kind` ("node", "input", "constant", "output"),
        `text` (what to print in it) and `centre` (a bool), and whose edges carry `slot`, the place
        among the reader's inputs.

    Raises:
        ArtefactError: The file is no valid ONNX model.
        InputError: No node has that name.
    """
    import networkx as nx

    view = _view(model)
    centre = view.find(node)
    if centre is None:
        raise InputError(f"the graph has no node called {node!r}; give a node's name")
    graph = nx.DiGraph()
    distance = {centre: 0}
    front = [centre]
    for step in range(1, radius + 1):
        front = [n for near in front for n in _near(near) if n not in distance]
        distance.update((n, step) for n in front)
    for member in distance:
        _add_node(graph, member, centre)
    return graph


def _view(model: onnx.ModelProto | View | str | os.PathLike[str]) -> View:
    import onnx

    if isinstance(model, View):
        return model
    if isinstance(model, onnx.ModelProto):
        return build_view(model, "")
    return ModelFile.of(model).view


def _near(node: Node) -> list[Node]:
    above = [value.node for value in node.inputs if value.node is not None]
    below = [reader for value in node.outputs for reader, _ in value.readers]
    return [*above, *below]


def _add_node(graph: nx.DiGraph, node: Node, centre: Node) -> None:
    key = _key(node)
    graph.add_node(key, kind="node", text=f"{node.proto.op_type}\n{node.label}")
    graph.nodes[key]["centre"] = node is centre
    for slot, value in enumerate(node.inputs):
        source = _add_source(graph, value)
        if source is not None:
            graph.add_edge(source, key, slot=slot)
    for value in node.outputs:
        if value.output_of:
            name = f"output {value.name}"
            graph.add_node(name, kind="output", text=value.name, centre=False)
            graph.add_edge(key, name, slot=0)


def _add_source(graph: nx.DiGraph, value: Value) -> str | None:
    if value.node is not None:
        key = _key(value.node)
        if key not in graph:
            text = f"{value.node.proto.op_type}\n{value.node.label}"
            graph.add_node(key, kind="node", text=text, centre=False)
        return key
    if value.scope is None and value.constant is None:
        return None
    kind = "input" if value.scope is not None else "constant"
    text = value.name if value.constant is None else f"{value.name}\n{value.constant}"
    graph.add_node(f"{kind} {value.name}", kind=kind, text=text, centre=False)
    return f"{kind} {value.name}"


def _key(node: Node) -> str:
    # Outputs are unique within a scope, names need not be.
    return f"{node.scope.name}/{next((o for o in node.proto.output if o), node.label)}"
