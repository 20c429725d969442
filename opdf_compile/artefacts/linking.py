"""From the protobuf messages of an ONNX model to the linked view of `onnx_graph`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from opdf_compile.artefacts.onnx_graph import Constant, FunctionKey, Graph, LinkedModel, Node, Value
from opdf_compile.artefacts.onnx_nodes import constant_of, graphs_in, opsets_of, plain_domain

if TYPE_CHECKING:
    import onnx


def link(model: onnx.ModelProto, folder: str = "") -> LinkedModel:
    """Link a model.

    Args:
        model: The model.
        folder: Folder of its file, for external data.

    Raises:
        ArtefactError: A value is read that nothing produces, or defined twice.
    """
    return _Linker(model, folder).link()


class _Linker:
    """Defines every value first and resolves names afterwards, since functions stand anywhere."""

    def __init__(self, model: onnx.ModelProto, folder: str) -> None:
        self.model = model
        self.folder = folder
        self.graphs: list[Graph] = []
        self.functions: dict[FunctionKey, Graph] = {}
        self.output_names: dict[Graph, list[str]] = {}

    def link(self) -> LinkedModel:
        model = self.model
        for function in model.functions:
            key = (plain_domain(function.domain), function.name, function.overload)
            self.functions[key] = self._function(function)
        main = self._graph(model.graph, None, opsets_of(model.opset_import), ())
        for graph in self.graphs:
            self._resolve(graph)
        return LinkedModel(model, main, self.graphs, self.functions)

    def _graph(
        self,
        proto: onnx.GraphProto,
        parent: Graph | None,
        opsets: Mapping[str, int],
        path: tuple[str, ...],
    ) -> Graph:
        graph = Graph(proto.name, parent, opsets, self.folder, path=path)
        self.graphs.append(graph)
        stored: dict[str, onnx.TensorProto | onnx.SparseTensorProto] = {
            **{tensor.name: tensor for tensor in proto.initializer},
            **{sparse.values.name: sparse for sparse in proto.sparse_initializer},
        }
        for name, tensor in stored.items():
            graph.define(Value(name, constant=Constant(name, tensor, graph)))
        # Before IR version 4 every initialiser had to be listed as an input, too.
        listed_twice = stored if self.model.ir_version < 4 else {}
        for info in proto.input:
            if info.name in listed_twice:
                continue
            # A listed initialiser is the input's default; listed once more it is no valid input.
            has_default = stored.pop(info.name, None) is not None
            value = graph.values[info.name] if has_default else Value(info.name)
            if not has_default:
                graph.define(value)
            self._add_input(graph, value)
        self._nodes(graph, proto.node)
        self.output_names[graph] = [info.name for info in proto.output]
        return graph

    def _function(self, proto: onnx.FunctionProto) -> Graph:
        graph = Graph(proto.name, None, opsets_of(proto.opset_import), self.folder, proto)
        self.graphs.append(graph)
        for name in proto.input:
            value = Value(name)
            graph.define(value)
            self._add_input(graph, value)
        self._nodes(graph, proto.node)
        self.output_names[graph] = list(proto.output)
        return graph

    def _add_input(self, graph: Graph, value: Value) -> None:
        value.index, value.input_of = len(graph.inputs), graph
        graph.inputs.append(value)

    def _nodes(self, graph: Graph, protos: Iterable[onnx.NodeProto]) -> None:
        for proto in protos:
            tensor = constant_of(proto)
            if tensor is not None:
                name = proto.output[0]
                graph.define(Value(name, constant=Constant(name, tensor, graph)))
                continue
            node = Node(proto, graph)
            graph.nodes.append(node)
            node.outputs = tuple(Value(n, i, node) for i, n in enumerate(proto.output) if n)
            for value in node.outputs:
                graph.define(value)
            # The recursion is bounded: protobuf parses no more than 100 levels.
            for attribute in proto.attribute:
                inner = list(graphs_in(attribute))
                if inner:
                    path = (*graph.path, f"{next(iter(proto.output), '')}.{attribute.name}")
                    node.subgraphs[attribute.name] = tuple(
                        self._graph(each, graph, graph.opsets, path) for each in inner
                    )

    def _resolve(self, graph: Graph) -> None:
        absent = Value("")
        for node in graph.nodes:
            names = list(node.proto.input)
            while names and not names[-1]:
                names.pop()
            node.inputs = tuple(graph.resolve(name) if name else absent for name in names)
            for place, value in enumerate(node.inputs):
                value.readers.append((node, place))
            if self.functions:
                node.function = self.functions.get((node.domain, node.op, node.proto.overload))
        for name in self.output_names[graph]:
            value = graph.resolve(name)
            value.output_of.append(graph)
            graph.outputs.append(value)
