"""From the protobuf messages of an ONNX model to the linked view of `graph_view`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from opdf_compile.parity.structure.canonical import Constant, plain_domain
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
        main = self._graph(model.graph, None, _opsets(model.opset_import))
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
        opsets = _opsets(function.opset_import)
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
            constant = self._constant_node(proto)
            if constant is not None:
                scope.define(Value(constant.name, constant=constant))
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

    def _constant_node(self, proto: onnx.NodeProto) -> Constant | None:
        if proto.op_type != "Constant" or plain_domain(proto.domain) or len(proto.output) != 1:
            return None
        if len(proto.attribute) != 1 or proto.attribute[0].ref_attr_name:
            return None
        tensor = _constant_tensor(proto.attribute[0])
        return None if tensor is None else self._constant(proto.output[0], tensor)

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


def _opsets(imports: Iterable[onnx.OperatorSetIdProto]) -> dict[str, int]:
    return {plain_domain(entry.domain): entry.version for entry in imports}


def _constant_tensor(
    attribute: onnx.AttributeProto,
) -> onnx.TensorProto | onnx.SparseTensorProto | None:
    """The tensor that a Constant node makes from its one attribute."""
    from onnx import TensorProto, helper

    if attribute.name == "value":
        return attribute.t
    if attribute.name == "sparse_value":
        return attribute.sparse_tensor
    forms: dict[str, tuple[int, list[Any], list[int]]] = {
        "value_float": (TensorProto.FLOAT, [attribute.f], []),
        "value_int": (TensorProto.INT64, [attribute.i], []),
        "value_string": (TensorProto.STRING, [attribute.s], []),
        "value_floats": (TensorProto.FLOAT, list(attribute.floats), [len(attribute.floats)]),
        "value_ints": (TensorProto.INT64, list(attribute.ints), [len(attribute.ints)]),
        "value_strings": (TensorProto.STRING, list(attribute.strings), [len(attribute.strings)]),
    }
    if attribute.name not in forms:
        return None
    dtype, content, dims = forms[attribute.name]
    return helper.make_tensor("", dtype, dims, content)
