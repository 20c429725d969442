"""The graph that OpenVINO runs, told by itself, as an ONNX model of operators in its own domain.

    layerType         operator            runtimePrecision, primitiveType     attributes
    edges             inputs              shapes and precisions of outputs    attributes
    originalLayersNames, each replaced by the type of that operation as it was read: `fused`

The last is needed because a layer type says "Convolution" whatever was fused behind it. Constants
come without their values: OpenVINO does not tell them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

DOMAIN = "org.openvino"
# They hold, bring or convert numbers, and compute none.
_NO_COMPUTING = ("Input", "Output", "Const", "Convert", "Reorder", "MemoryInput", "MemoryOutput")
_ATTRIBUTES = ("runtimePrecision", "outputPrecisions", "primitiveType", "outputLayouts")


@dataclass(frozen=True)
class Operation:
    """One operation that runs.

    Attributes:
        node: OpenVINO's node.
        kind: Its layer type.
        precision: The type that it computes in, as "f32".
    """

    node: Any
    kind: str
    precision: str

    @property
    def computes(self) -> bool:
        """Whether it does arithmetic."""
        return self.kind not in _NO_COMPUTING


def executed(graph: Any) -> Iterator[Operation]:
    """The operations of a runtime graph in topological order."""
    for node in graph.get_ordered_ops():
        about = node.get_rt_info()
        kind = _told(about, "layerType")
        # A second output that nobody reads ends in a stub.
        stub = kind == "Output" and node.get_type_name() != "Result"
        if not stub:
            yield Operation(node, kind, _told(about, "runtimePrecision"))


def graph_that_runs(graph: Any, source: Any) -> onnx.ModelProto:
    """A runtime graph as an ONNX model; `source` is the model as it was read."""
    from onnx import TensorProto, helper

    types = {node.get_friendly_name(): node.get_type_name() for node in source.get_ops()}

    def port(name: str) -> onnx.ValueInfoProto:
        # The types of the ends are attributes of nodes, as those of all other values.
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)

    nodes, inputs = [], []
    for operation in executed(graph):
        node, name = operation.node, operation.node.get_friendly_name()
        if operation.kind == "Input":
            # A node of its own, so that its type and shape are compared too.
            inputs.append(port(f"input {name}"))
        sources = [one.get_source_output() for one in node.inputs()]
        nodes.append(
            helper.make_node(
                operation.kind,
                [f"input {name}"]
                if operation.kind == "Input"
                else [_value(one.get_node(), one.get_index()) for one in sources],
                [_value(node, index) for index in range(max(1, node.get_output_size()))],
                name=name,
                domain=DOMAIN,
                **_attributes(node, types),
            )
        )
    outputs = [port(_value(node, 0)) for node in graph.get_results()]
    made = helper.make_graph(nodes, "openvino", inputs, outputs)
    return helper.make_model(made, opset_imports=[helper.make_opsetid(DOMAIN, 1)], ir_version=8)


def _value(node: Any, index: int) -> str:
    return f"{node.get_friendly_name()}:{index}"


def _attributes(node: Any, types: Mapping[str, str]) -> dict[str, str]:
    about = node.get_rt_info()
    told = {name: _told(about, name) for name in _ATTRIBUTES if name in about}
    shapes = ", ".join(str(output.get_partial_shape()) for output in node.outputs())
    # Names are not compared, and those that OpenVINO gave count up from file to file.
    names = _told(about, "originalLayersNames").split(",")
    return {**told, "shapes": shapes, "fused": ", ".join(types.get(name, "new") for name in names)}


def _told(about: Any, name: str) -> str:
    # OpenVINO's map is no dict.
    value = about[name] if name in about else ""  # noqa: SIM401
    return str(value.astype(str) if hasattr(value, "astype") else value)
