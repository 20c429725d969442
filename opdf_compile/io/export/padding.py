"""Padding before a max-pool that ONNX Runtime would otherwise compute wrongly.

    Pad(x, p, 0) -> MaxPool    becomes    Pad(x, p, 0, axes) -> MaxPool

ONNX Runtime's PadFusion moves the padding of such a Pad into the MaxPool, where it counts as minus
infinity and no longer as the 0 that was asked for: another result wherever a border is negative. A
Pad that names its axes is never fused, and naming all of them changes nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx_ir as ir

_DATA, _PADS, _VALUE, _AXES = range(4)


def keep_padding(model: ir.Model) -> None:
    """Name the axes of every constant Pad that only a max-pool reads, in place."""
    for node in list(model.graph.all_nodes()):
        if _is_constant_pad(node) and _feeds_max_pool(node):
            _name_axes(model, node)


def named_axes(node: ir.Node) -> bool:
    """Whether a node is a Pad that names its axes."""
    return (
        (node.domain, node.op_type) == ("", "Pad")
        and len(node.inputs) > _AXES
        and node.inputs[_AXES] is not None
    )


def _is_constant_pad(node: ir.Node) -> bool:
    if node.op_type != "Pad" or node.domain != "":
        return False
    mode = node.attributes.get("mode")
    return not named_axes(node) and (mode is None or mode.as_string() == "constant")


def _feeds_max_pool(node: ir.Node) -> bool:
    """Whether a MaxPool reads the output, at once or behind a Cast."""
    readers = [use.node for use in node.outputs[0].uses()]
    behind = [u.node for r in readers if r.op_type == "Cast" for u in r.outputs[0].uses()]
    return any(reader.op_type == "MaxPool" for reader in (*readers, *behind))


def _name_axes(model: ir.Model, node: ir.Node) -> None:
    import numpy as np
    import onnx_ir as ir

    pads: Any = node.inputs[_PADS]
    if pads.const_value is None:
        return  # Computed in the graph: the fusion does not see such a Pad either.
    rank = pads.const_value.size // 2
    name = f"{node.outputs[0].name}_axes"
    tensor = ir.tensor(np.arange(rank, dtype=np.int64), name=name)
    axes = ir.Value(
        name=name, shape=ir.Shape([rank]), type=ir.TensorType(ir.DataType.INT64), const_value=tensor
    )
    model.graph.register_initializer(axes)
    node.resize_inputs(_AXES + 1)
    node.replace_input_with(_AXES, axes)
