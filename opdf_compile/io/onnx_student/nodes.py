"""ONNX messages as plain values: nodes, their attributes, and the graphs nested in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from opdf_compile.artefacts import constant_of, plain_domain
from opdf_compile.errors import ArtefactError

if TYPE_CHECKING:
    import onnx

# Names by which a constant is found again in the file: the outputs and attributes that lead to it.
Scope = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Node:
    """One node.

    Attributes:
        op: Its operator.
        domain: The operator's domain, "" for ONNX's own.
        version: The operator set in force for that domain.
        name: What a message calls it.
        inputs: Names of values; "" where an optional input is left out.
        outputs: Names of values.
        attributes: Numbers, texts, lists and numpy arrays by name.
        graphs: Nested graphs by the attribute that holds them.
    """

    op: str
    domain: str
    version: int
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    graphs: Mapping[str, Graph] = field(default_factory=dict)

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute, or its default."""
        return self.attributes.get(name, default)

    def __str__(self) -> str:
        """Name and operator, for messages."""
        return f"{self.name!r} ({self.op})"


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor that the file carries.

    Attributes:
        name: Its name in its graph.
        scope: Where that graph is.
        tensor: The message with the numbers.
    """

    name: str
    scope: Scope
    tensor: onnx.TensorProto


@dataclass(frozen=True, eq=False)
class Graph:
    """A graph.

    Attributes:
        inputs: Names of the inputs that are no initialisers, in order.
        outputs: Names of the outputs, in order.
        constants: Initialisers and Constant nodes by name.
        nodes: The other nodes, in an order that can be run.
        last_use: For each node, the values that nothing reads after it.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: Mapping[str, Constant]
    nodes: tuple[Node, ...]
    last_use: tuple[tuple[str, ...], ...]

    def reads(self) -> set[str]:
        """Names that the graph takes from the graphs around it."""
        own = {*self.inputs, *self.constants, *(o for node in self.nodes for o in node.outputs)}
        return {name for node in self.nodes for name in _read_by(node)}.union(self.outputs) - own


def parse(graph: onnx.GraphProto, opsets: Mapping[str, int], scope: Scope = ()) -> Graph:
    """Read a graph and those nested in it.

    Args:
        graph: The message; functions have been inlined.
        opsets: Operator set version by domain.
        scope: Where the graph is.

    Raises:
        ArtefactError: It holds an attribute of an unknown kind.
    """
    constants = {c.name: c for c in constants_of(graph, scope)}
    nodes = tuple(
        _node(proto, opsets, index, scope)
        for index, proto in enumerate(graph.node)
        if not (is_constant(proto) and proto.output[0] in constants)
    )
    outputs = tuple(info.name for info in graph.output)
    return Graph(
        inputs=tuple(info.name for info in graph.input if info.name not in constants),
        outputs=outputs,
        constants=constants,
        nodes=nodes,
        last_use=tuple(_last_use(nodes, outputs)),
    )


def constants_of(graph: onnx.GraphProto, scope: Scope = ()) -> Iterable[Constant]:
    """The constants of one graph: initialisers, sparse ones, and Constant nodes with a tensor."""
    for tensor in graph.initializer:
        yield Constant(tensor.name, scope, tensor)
    for sparse in graph.sparse_initializer:
        yield Constant(sparse.values.name, scope, dense(sparse))
    for node in graph.node:
        if is_constant(node):
            yield Constant(node.output[0], scope, constant_tensor(node))


def all_constants(graph: onnx.GraphProto, scope: Scope = ()) -> Iterable[Constant]:
    """The constants of a graph and of every graph nested in it, outermost first."""
    yield from constants_of(graph, scope)
    for node in graph.node:
        for name, inner in _subgraphs(node):
            yield from all_constants(inner, inner_scope(scope, node.output, name))


def inner_scope(scope: Scope, outputs: Iterable[str], attribute: str) -> Scope:
    """Where a graph lies that a node holds."""
    return (*scope, f"{next(iter(outputs), '')}.{attribute}")


def is_constant(node: onnx.NodeProto) -> bool:
    """Whether a node only holds a tensor of numbers."""
    return constant_of(node) is not None and node.attribute[0].name != "value_string"


def constant_tensor(node: onnx.NodeProto) -> onnx.TensorProto:
    """The numbers of a Constant node."""
    from onnx import SparseTensorProto

    tensor = constant_of(node)
    if isinstance(tensor, SparseTensorProto):
        return dense(tensor)
    if tensor is None or node.attribute[0].name == "value_strings":
        raise ArtefactError(
            f"a Constant node holds {node.attribute[0].name!r}, wanted a tensor or numbers; texts "
            "have no form in torch: export the model without them"
        )
    return tensor


def dense(sparse: onnx.SparseTensorProto) -> onnx.TensorProto:
    """A sparse tensor with its zeros written out."""
    import numpy as np
    from onnx import numpy_helper

    values, indices = map(numpy_helper.to_array, (sparse.values, sparse.indices))
    array = np.zeros(tuple(sparse.dims), dtype=values.dtype)
    if indices.ndim == 1:
        array.reshape(-1)[indices] = values
    else:
        array[tuple(indices.T)] = values
    return numpy_helper.from_array(array, sparse.values.name)


def torch_dtype(code: int) -> torch.dtype | None:
    """The dtype of an ONNX element type, or None where torch has none to calculate with."""
    from onnx import TensorProto

    name = TensorProto.DataType.Name(code).lower() if code in TensorProto.DataType.values() else ""
    plain = {"float": "float32", "double": "float64"}.get(name, name)
    known = ("bool", "float16", "bfloat16", "float32", "float64", "uint8", "complex64")
    signed = ("int8", "int16", "int32", "int64", "complex128", "uint16", "uint32", "uint64")
    return getattr(torch, plain) if plain in (*known, *signed) else None


def _node(proto: onnx.NodeProto, opsets: Mapping[str, int], index: int, scope: Scope) -> Node:
    domain = plain_domain(proto.domain)
    inputs = list(proto.input)
    while inputs and not inputs[-1]:
        inputs.pop()
    return Node(
        op=proto.op_type,
        domain=domain,
        version=opsets.get(domain, 0),
        name=proto.name or next(iter(proto.output), "") or f"node {index}",
        inputs=tuple(inputs),
        outputs=tuple(proto.output),
        attributes=dict(_attributes(proto)),
        graphs={
            name: parse(graph, opsets, inner_scope(scope, proto.output, name))
            for name, graph in _subgraphs(proto)
        },
    )


def _subgraphs(node: onnx.NodeProto) -> Iterable[tuple[str, onnx.GraphProto]]:
    return ((a.name, a.g) for a in node.attribute if a.HasField("g"))


def _attributes(node: onnx.NodeProto) -> Iterable[tuple[str, Any]]:
    from onnx import TensorProto, helper, numpy_helper

    for attribute in node.attribute:
        if attribute.HasField("g") or attribute.graphs:
            continue
        value = helper.get_attribute_value(attribute)
        if isinstance(value, TensorProto):
            value = numpy_helper.to_array(value)
        elif isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        elif isinstance(value, list | tuple):
            value = [v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in value]
        yield attribute.name, value


def _read_by(node: Node) -> set[str]:
    names = {name for name in node.inputs if name}
    for graph in node.graphs.values():
        names |= graph.reads()
    return names


def _last_use(nodes: tuple[Node, ...], outputs: tuple[str, ...]) -> Iterable[tuple[str, ...]]:
    """Without it every activation of the model would live until the end of the forward."""
    last = {name: index for index, node in enumerate(nodes) for name in _read_by(node)}
    by_node: dict[int, list[str]] = {}
    for name, index in last.items():
        if name not in outputs:
            by_node.setdefault(index, []).append(name)
    return (tuple(by_node.get(index, ())) for index in range(len(nodes)))
