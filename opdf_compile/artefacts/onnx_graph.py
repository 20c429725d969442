"""An ONNX model as linked objects: nodes, values, constants, and the graphs that own them.

Names are resolved once, as the ONNX specification scopes them: a subgraph sees the names of the
graphs around it, a local function sees only its own. After that a value is an object and names
serve messages alone. Constant nodes become constants, like initialisers. No number is copied: a
constant points at the message that holds it.

Everything here is protobuf and plain Python, because `verify` runs where torch is not installed and
nearly all of its time is start-up. onnx-ir has such a view too, but importing it costs 0.28 s and
35 MiB, in a command that takes 0.45 s and 95 MiB.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from opdf_compile.artefacts.onnx_nodes import plain_domain
from opdf_compile.artefacts.onnx_tensors import element_type, fingerprint_of
from opdf_compile.errors import ArtefactError

if TYPE_CHECKING:
    import onnx

# Where a constant stands in its file: the outputs and attributes that lead to its graph, its name.
Address = tuple[tuple[str, ...], str]
FunctionKey = tuple[str, str, str]

# So many numbers of a constant are shown in a message.
_FEW = 8


# The classes with slots have hundreds of thousands of instances in a large model. No class has a
# repr: it would follow every link.
@dataclass(eq=False, repr=False, slots=True)
class Constant:
    """A tensor that a graph carries: an initialiser or the value of a Constant node.

    Attributes:
        name: The value's name in its graph.
        proto: Where the numbers are.
        graph: Its graph.
        parameter: Whether it is a parameter of the model; the file's record says so, not the graph.
    """

    name: str
    proto: onnx.TensorProto | onnx.SparseTensorProto
    graph: Graph
    parameter: bool = False
    _fingerprint: Hashable = None
    _shape: tuple[int, ...] | None = None

    @property
    def address(self) -> Address:
        """Where it stands in the file; the same in every copy of the file."""
        return (self.graph.path, self.name)

    @property
    def is_sparse(self) -> bool:
        """Whether only its numbers other than zero are stored."""
        import onnx

        return isinstance(self.proto, onnx.SparseTensorProto)

    @property
    def dtype(self) -> int:
        """ONNX element type."""
        return self._stored.data_type

    @property
    def shape(self) -> tuple[int, ...]:
        """Dense shape."""
        if self._shape is None:
            self._shape = tuple(self.proto.dims)
        return self._shape

    @property
    def _stored(self) -> onnx.TensorProto:
        return self.proto.values if self.is_sparse else self.proto

    @property
    def fingerprint(self) -> Hashable:
        """Equal for equal dtype, shape and bytes."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint_of(self.proto, self.graph.folder)
        return self._fingerprint

    @property
    def is_small(self) -> bool:
        """Whether its numbers fit into a message."""
        return math.prod(self.shape) <= _FEW

    def numbers(self) -> str:
        """The values in words; for a small constant."""
        from onnx import numpy_helper

        text = str(numpy_helper.to_array(self._stored, self.graph.folder).tolist())
        return text.replace(str(2**63 - 1), "end")

    def __str__(self) -> str:
        """Dtype and shape as in ``float32[64, 3, 7, 7]``."""
        return f"{element_type(self.dtype)}{list(self.shape)}"


@dataclass(eq=False, repr=False, slots=True)
class Value:
    """One value of a graph.

    Exactly one of `node`, `constant` and `input_of` says where it comes from: an output of a node,
    a constant, an input of a graph (which may have a constant as its default). None of them: the
    value is absent, an optional input that was left out.
    """

    name: str
    index: int = 0
    node: Node | None = None
    input_of: Graph | None = None
    constant: Constant | None = None
    readers: list[tuple[Node, int]] = field(default_factory=list)
    output_of: list[Graph] = field(default_factory=list)

    @property
    def is_absent(self) -> bool:
        """Whether it stands for an optional input that was left out."""
        return self.node is None and self.input_of is None and self.constant is None

    def __str__(self) -> str:
        """What the value is, for a message."""
        if self.node is not None:
            place = f" output {self.index}" if self.index else ""
            return f"{self.node}{place}"
        if self.input_of is not None:
            return f"input {self.name!r}"
        if self.constant is not None:
            kind = "parameter" if self.constant.parameter else "constant"
            return f"{kind} {self.name!r} {self.constant}"
        return "nothing"


@dataclass(eq=False, repr=False, slots=True)
class Node:
    """One node; `inputs` are linked values, trailing absent ones dropped."""

    proto: onnx.NodeProto
    graph: Graph
    subgraphs: dict[str, tuple[Graph, ...]] = field(default_factory=dict)
    inputs: tuple[Value, ...] = ()
    outputs: tuple[Value, ...] = ()
    function: Graph | None = None
    _attributes: dict[str, Any] | None = None

    @property
    def op(self) -> str:
        """Its operator."""
        return self.proto.op_type

    @property
    def domain(self) -> str:
        """The operator's domain, "" for ONNX's own."""
        return plain_domain(self.proto.domain)

    @property
    def version(self) -> int:
        """The operator set in force for that domain; 0 without one."""
        return self.graph.opsets.get(self.domain, 0)

    @property
    def label(self) -> str:
        """The node's name, or that of its first output where it has none."""
        return self.proto.name or next((o for o in self.proto.output if o), "?")

    @property
    def attributes(self) -> Mapping[str, Any]:
        """Numbers, texts, lists and numpy arrays by name, as they are written; no subgraphs."""
        if self._attributes is None:
            self._attributes = dict(_plain_attributes(self.proto))
        return self._attributes

    @property
    def inner(self) -> Iterator[Graph]:
        """The graphs that it holds in its attributes."""
        return (graph for graphs in self.subgraphs.values() for graph in graphs)

    def reads(self) -> list[Value]:
        """The values that it reads, each once, also from within the graphs that it holds."""
        inner = (value for graph in self.inner for value in graph.captured())
        return list(dict.fromkeys([*self.inputs, *inner]))

    def __str__(self) -> str:
        """Operator and name, for a message."""
        return f"{self.op} {self.label!r}"


@dataclass(eq=False, repr=False)
class Graph:
    """A graph, a subgraph or the body of a local function.

    Attributes:
        name: Its name.
        parent: The graph around it, whose values it sees.
        opsets: Operator set version by domain.
        folder: Folder of the model file, for external data.
        function: The function whose body it is.
        path: Outputs and attributes that lead to it from the outermost graph.
        values: What it defines, by name.
        inputs: In order.
        outputs: In order; a value of a graph around may be one.
        nodes: In the order of the file, without Constant nodes.
    """

    name: str
    parent: Graph | None
    opsets: Mapping[str, int]
    folder: str
    function: onnx.FunctionProto | None = None
    path: tuple[str, ...] = ()
    values: dict[str, Value] = field(default_factory=dict)
    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)

    def define(self, value: Value) -> None:
        """Add a value under its name.

        Raises:
            ArtefactError: The name is taken.
        """
        if value.name in self.values:
            raise ArtefactError(
                f"the graph {self.name!r} defines {value.name!r} twice, so it is not valid ONNX; "
                "export it again"
            )
        self.values[value.name] = value

    def resolve(self, name: str) -> Value:
        """Find a name here or in a graph around.

        Raises:
            ArtefactError: Nothing produces it.
        """
        graph: Graph | None = self
        while graph is not None:
            value = graph.values.get(name)
            if value is not None:
                return value
            graph = graph.parent
        raise ArtefactError(
            f"the graph {self.name!r} reads {name!r}, which nothing produces, so it is not valid "
            "ONNX; export it again"
        )

    def nested(self) -> Iterator[Graph]:
        """The graph itself and the graphs inside it, at every depth, outermost first."""
        yield self
        for node in self.nodes:
            for graph in node.inner:
                yield from graph.nested()

    def constants(self) -> Iterator[Constant]:
        """Its constants and those of the graphs inside it, outermost first."""
        values = (value for graph in self.nested() for value in graph.values.values())
        return (value.constant for value in values if value.constant)

    def captured(self) -> list[Value]:
        """The values that it takes from the graphs around it, each once."""
        own = set(self.values.values())
        read = dict.fromkeys(value for node in self.nodes for value in node.reads())
        read.update(dict.fromkeys(self.outputs))
        return [value for value in read if value not in own and not value.is_absent]


@dataclass(eq=False, repr=False)
class LinkedModel:
    """A linked model.

    Attributes:
        proto: The message; nothing here changes it.
        main: Its graph.
        graphs: Every graph at every depth, bodies of local functions included.
        functions: Those bodies by domain, name and overload.
    """

    proto: onnx.ModelProto
    main: Graph
    graphs: list[Graph]
    functions: dict[FunctionKey, Graph]

    @property
    def nodes(self) -> Iterator[Node]:
        """Every node at every depth."""
        return (node for graph in self.graphs for node in graph.nodes)

    @cached_property
    def last_use(self) -> Mapping[Node, tuple[Value, ...]]:
        """By node, the values that nothing in its graph reads after it, outputs excepted."""
        found: dict[Node, list[Value]] = {node: [] for node in self.nodes}
        for graph in self.graphs:
            last = {value: node for node in graph.nodes for value in node.reads()}
            for value, node in last.items():
                if value not in graph.outputs:
                    found[node].append(value)
        return {node: tuple(values) for node, values in found.items()}


def nodes_behind(values: Iterable[Value]) -> set[Node]:
    """The nodes that values depend on, those of nested graphs and called functions included."""
    found: set[Node] = set()
    waiting = list(values)
    while waiting:
        node = waiting.pop().node
        if node is None or node in found:
            continue
        found.add(node)
        waiting.extend(node.inputs)
        for graph in node.inner if node.function is None else (*node.inner, node.function):
            waiting.extend(graph.outputs)
    return found


def _plain_attributes(node: onnx.NodeProto) -> Iterator[tuple[str, Any]]:
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
