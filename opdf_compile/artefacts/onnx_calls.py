"""Model-local functions of an ONNX file: no cycles, and not more nodes than anybody meant.

A runtime copies a function's body to each of its calls. A function that calls itself never ends,
and a few functions that each call the next one several times are more nodes than any memory holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING

from opdf_compile.artefacts.onnx_nodes import graphs_in
from opdf_compile.errors import ArtefactError

if TYPE_CHECKING:
    import onnx

MOST_NODES = 10_000_000
_Key = tuple[str, str, str]


def check_calls(model: onnx.ModelProto, file: Path) -> None:
    """Refuse functions that call themselves, or that unfold to an absurd number of nodes.

    Raises:
        ArtefactError: With the function's name.
    """
    bodies = {(f.domain, f.name, f.overload): list(_nodes(f.node)) for f in model.functions}
    if not bodies:
        return
    sizes: dict[_Key, int] = {}
    for key in _callees_first(bodies, file):
        sizes[key] = _unfolded(bodies[key], sizes)
    whole = _unfolded(_nodes(model.graph.node), sizes)
    if whole > MOST_NODES:
        raise ArtefactError(
            f"{file} is refused: its functions unfold to {whole:.3g} nodes, at most {MOST_NODES} "
            "are read; export it again"
        )


def _unfolded(nodes: Iterable[onnx.NodeProto], sizes: dict[_Key, int]) -> int:
    # An int of any length: the count itself cannot overflow, and is capped all the same.
    total = sum(1 + sizes.get(_key(node), 0) for node in nodes)
    return min(total, 10**30)


def _callees_first(bodies: dict[_Key, list[onnx.NodeProto]], file: Path) -> Iterator[_Key]:
    """Functions in an order in which each comes after those that it calls."""
    calls = {key: {_key(node) for node in body} & bodies.keys() for key, body in bodies.items()}
    try:
        yield from TopologicalSorter(calls).static_order()
    except CycleError as error:
        ring: list[_Key] = error.args[1]
        raise ArtefactError(
            f"{file} is refused: its function {ring[0][1]!r} calls itself, so it never ends; "
            "export it again"
        ) from error


def _nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """All nodes, also those of nested graphs."""
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        yield node
        waiting.extend(inner for graph in graphs_in(*node.attribute) for inner in graph.node)


def _key(node: onnx.NodeProto) -> _Key:
    return (node.domain, node.op_type, node.overload)
