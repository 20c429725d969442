"""From the protobuf messages of an ONNX model to the linked view of `graph_view`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from opdf_compile.artefacts import constant_of, opsets_of, plain_domain
from opdf_compile.parity.structure.canonical import Constant
from opdf_compile.parity.structure.graph_view import FunctionKey, Node, Scope, Value, View

if TYPE_CHECKING:
    import onnx


def build_view(model: onnx.ModelProto, folder: str) -> View:
    """Link a model.

    Args:
        model: The model.
        folder: Folder of its file, for external data.

    Raises:
        ArtefactError: A value is read that nothing produces, or defined twice.
    """
    return _Builder(model, folder).build()


class _Builder:
    def __init__(self, model: onnx.ModelProto, folder: str) -> None:
        self.model = model
        self.folder = folder
        self.scopes: list[Scope] = []
        self.functions: dict[FunctionKey, Scope] = {}
        self.links: list[tuple[Scope, list[str]]] = []

    def build(self) -> View:
        model = self.model
        for function in model.functions:
            key = (plain_domain(function.domain), function.name, function.overload)
            self.functions[key] = self._function(function)
        main = self._graph(model.graph, None, opsets_of(model.opset_import))
        for scope, outputs in self.links:
            self._link(scope, outputs)
        return View(model, main, self.scopes, self.functions)

    def _scope(self, scope: Scope) -> Scope:
        self.scopes.append(scope)
        return scope

    def _graph(
        self, graph: onnx.GraphProto, parent: Scope | None, opsets: Mapping[str, int]
    ) -> Scope:
        scope = self._scope(Scope(graph.name, parent, opsets, self.folder))
        constants = {t.name: self._constant(t.name, t) for t in graph.initializer}
        for sparse in graph.sparse_initializer:
            constants[sparse.values.name] = self._constant(sparse.values.name, sparse)
        # Before IR version 4 every initialiser had to be listed as an input, too.
        listed_twice = constants.keys() if self.model.ir_version < 4 else set()
        for info in graph.input:
            if info.name in listed_twice:
                continue
            value = Value(info.name, len(scope.inputs), scope=scope)
            value.constant = constants.pop(info.name, None)
            scope.define(value)
            scope.inputs.append(value)
        for constant in constants.values():
            scope.define(Value(constant.name, constant=constant))
        self._nodes(scope, graph.node)
        self.links.append((scope, [info.name for info in graph.output]))
        return scope

    def _function(self, function: onnx.FunctionProto) -> Scope:
        opsets = opsets_of(function.opset_import)
        scope = self._scope(Scope(function.name, None, opsets, self.folder, function))
        for name in function.input:
            value = Value(name, len(scope.inputs), scope=scope)
            scope.define(value)
            scope.inputs.append(value)
        self._nodes(scope, function.node)
        self.links.append((scope, list(function.output)))
        return scope

    def _nodes(self, scope: Scope, protos: Iterable[onnx.NodeProto]) -> None:
        for proto in protos:
            tensor = constant_of(proto)
            if tensor is not None:
                name = proto.output[0]
                scope.define(Value(name, constant=self._constant(name, tensor)))
                continue
            node = Node(proto, scope)
            scope.nodes.append(node)
            outputs = [Value(name, i, node) for i, name in enumerate(proto.output) if name]
            node.outputs = tuple(outputs)
            for value in outputs:
                scope.define(value)
            self._subgraphs(node)

    def _subgraphs(self, node: Node) -> None:
        # The recursion is bounded: protobuf parses no more than 100 levels.
        for attribute in node.proto.attribute:
            graphs = [attribute.g] if attribute.HasField("g") else list(attribute.graphs)
            if graphs:
                node.subgraphs[attribute.name] = tuple(
                    self._graph(graph, node.scope, node.scope.opsets) for graph in graphs
                )

    def _constant(self, name: str, proto: onnx.TensorProto | onnx.SparseTensorProto) -> Constant:
        return Constant(name, proto, self.folder, parameter=False)

    def _link(self, scope: Scope, outputs: list[str]) -> None:
        absent = Value("")
        for node in scope.nodes:
            names = list(node.proto.input)
            while names and not names[-1]:
                names.pop()
            node.inputs = tuple(scope.resolve(name) if name else absent for name in names)
            for place, value in enumerate(node.inputs):
                value.readers.append((node, place))
            node.function = self.functions.get(
                (plain_domain(node.proto.domain), node.proto.op_type, node.proto.overload)
            )
        for name in outputs:
            value = scope.resolve(name)
            value.output_of.append(scope)
            scope.outputs.append(value)
