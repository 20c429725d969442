"""Which outputs of a graph depend on random numbers: no evidence can be made of those.

A model that draws in its eval graph (``F.dropout`` left in training, ``randn_like``) is as far from
its own float64 truth as its noise is large. A tolerance made of that would pass any file. So the
outputs that a drawing operator reaches are told, and `verify` does not judge them.

What draws is what torch tags `nondeterministic_seeded`, unless its arguments switch it off. An
operator without the tag is found by the state of torch's generators, which a draw moves.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from opdf_compile.graph import nested_graphs
from opdf_compile.io.evidence.places import node_place

# Arguments by which an operator that is tagged draws nothing, with their quiet values.
_SWITCHES: Mapping[str, tuple[Any, ...]] = {
    "train": (False,),
    "training": (False,),
    "dropout_p": (0.0,),
    "dropout": (0.0,),
}
_RATE = "p"  # Of a dropout; of a Bernoulli it is another thing.
UNKNOWN = "an operator that torch does not mark as random"


@dataclass(frozen=True)
class Draws:
    """What a graph draws.

    Attributes:
        outputs: By output that depends on it, the operators that draw and where.
        known: Whether any operator of the graph draws by its own declaration.
    """

    outputs: Mapping[str, str]
    known: bool


def find_draws(graph: GraphModule, names: Sequence[str]) -> Draws:
    """Follow random numbers through a graph, from the operators that draw them to the outputs.

    Args:
        graph: An unlifted program.
        names: Its tensor outputs in order.
    """
    tainted = _tainted(graph)
    everything = set().union(*tainted.values())
    outputs = _tensor_outputs(graph)
    if len(outputs) != len(names):
        # Which output is which is not known, so none is taken for exact.
        found = dict.fromkeys(names, everything)
    else:
        found = {n: tainted.get(node, set()) for n, node in zip(names, outputs, strict=True)}
    return Draws({n: _words(reasons) for n, reasons in found.items() if reasons}, bool(everything))


def _tainted(graph: GraphModule) -> dict[Node, set[str]]:
    """The nodes whose values depend on random numbers, with the places where they are drawn."""
    tainted: dict[Node, set[str]] = {}
    # Values that share memory: a write into one is read from all.
    shared: dict[Node, list[Node]] = {}
    for node in graph.graph.nodes:
        if node.op == "output":
            break
        _join(node, shared)
        sources = shared[node] if node.op == "get_attr" else node.all_input_nodes
        reasons = set().union(*(tainted.get(source, set()) for source in sources))
        reasons |= _draws(node, graph)
        if not reasons:
            continue
        written = [alias for target in _written(node) for alias in shared[target]]
        for reached in (node, *written):
            tainted[reached] = tainted.get(reached, set()) | reasons
    return tainted


def _words(reasons: set[str]) -> str:
    shown = sorted(reasons)
    more = f" and {len(shown) - 3} more" if len(shown) > 3 else ""
    return ", ".join(shown[:3]) + more


def _draws(node: Node, root: GraphModule) -> set[str]:
    """Where a node draws; those in graphs that it calls included."""
    if node.op != "call_function":
        return set()
    inner = [nested.module for nested in nested_graphs(root, node)]
    found = set().union(*(_draws(n, module) for module in inner for n in module.graph.nodes))
    tags = getattr(node.target, "tags", ())
    if torch.Tag.nondeterministic_seeded in tags and not _is_quiet(node):
        found.add(node_place(node))
    return found


def _is_quiet(node: Node) -> bool:
    schema = node.target._schema  # type: ignore[union-attr]
    given = dict(zip((a.name for a in schema.arguments), node.args, strict=False))
    for argument in schema.arguments:
        value = given.get(argument.name, node.kwargs.get(argument.name, argument.default_value))
        quiet = _SWITCHES.get(argument.name, ())
        if argument.name == _RATE and "dropout" in schema.name:
            quiet = (0.0,)
        if value in quiet and not isinstance(value, Node):
            return True
    return False


def _written(node: Node) -> list[Node]:
    """The arguments that a node writes into."""
    schema = getattr(node.target, "_schema", None)
    if node.op != "call_function" or schema is None:
        return []
    places = [a for a in schema.arguments if a.alias_info and a.alias_info.is_write]
    return [value for value in (_value(node, schema, a.name) for a in places) if value is not None]


def _value(node: Node, schema: Any, name: str) -> Node | None:
    given = dict(zip((a.name for a in schema.arguments), node.args, strict=False))
    value = given.get(name, node.kwargs.get(name))
    return value if isinstance(value, Node) else None


def _join(node: Node, shared: dict[Node, list[Node]]) -> None:
    """Put a node beside the values whose memory it views; reads of one attribute are one value."""
    shared[node] = [node]
    relatives: list[Node] = []
    if node.op == "get_attr":
        relatives = [n for n in shared if n.op == "get_attr" and n.target == node.target]
    schema = getattr(node.target, "_schema", None)
    if node.target is operator.getitem:
        relatives = [node.all_input_nodes[0]]
    if node.op != "call_function":
        schema = None
    if schema is not None and any(result.alias_info for result in schema.returns):
        names = [a.name for a in schema.arguments if a.alias_info]
        relatives = [v for v in (_value(node, schema, name) for name in names) if v is not None]
    for relative in relatives:
        if shared[relative] is not shared[node]:
            merged = shared[relative]
            merged.extend(shared[node])
            for member in shared[node]:
                shared[member] = merged


def _tensor_outputs(graph: GraphModule) -> list[Node]:
    (output,) = (node for node in graph.graph.nodes if node.op == "output")
    leaves = torch.utils._pytree.tree_leaves(output.args[0])
    nodes = [leaf for leaf in leaves if isinstance(leaf, Node)]
    return [node for node in nodes if isinstance(node.meta.get("val"), Tensor)]


class Generators:
    """torch's generators on the devices of a model."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        """Note the devices."""
        kinds = {tensor.device.type for tensor in tensors} - {"cpu", "meta"}
        self._modules = [torch.random, *(torch.get_device_module(kind) for kind in sorted(kinds))]

    def state(self) -> list[Tensor]:
        """What a draw changes."""
        return [module.get_rng_state() for module in self._modules]

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Give the caller's states back after a block."""
        before = self.state()
        try:
            yield
        finally:
            for module, state in zip(self._modules, before, strict=True):
                module.set_rng_state(state)


def has_moved(before: Sequence[Tensor], after: Sequence[Tensor]) -> bool:
    """Whether something was drawn between two states."""
    return not all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
