"""Attention rows that see no key, without IsNaN.

    p = Softmax(scores + Where(mask, 0, lowest))

    Where(IsNaN(p), 0, p)     becomes     Where(mask, p, 0)

torch gives zeros where a boolean mask leaves a query nothing. Its exporter writes that as "zero
where the softmax is NaN". But the lowest number is finite, so such a row becomes the mean of all
values and never NaN, while a NaN that comes from the activations is wiped out; and several runtimes
have no IsNaN. Zero wherever the mask forbids is what torch computes: in a row that sees a key, the
forbidden places are zero already. A causal or missing mask has no such row and no such nodes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir


def mask_directly(model: ir.Model) -> None:
    """Replace the exporter's NaN test of every masked softmax by its mask, in place.

    Nodes that nobody reads are dropped afterwards.
    """
    for node in list(model.graph.all_nodes()):
        mask = _mask_behind(node)
        if mask is not None:
            zero, weights = node.inputs[1:3]
            for place, value in enumerate((mask, weights, zero)):
                node.replace_input_with(place, value)


def _mask_behind(node: ir.Node) -> ir.Value | None:
    """The mask of Where(IsNaN(p), 0, p) over a softmax with a boolean mask; None elsewhere."""
    if node.op_type != "Where":
        return None
    test, zero, weights = node.inputs
    tested = _made_by(test, "IsNaN")
    softmax = _made_by(weights, "Softmax")
    if tested is None or softmax is None or tested.inputs[0] is not weights or not _is_zero(zero):
        return None
    scores = _made_by(softmax.inputs[0], "Add")
    if scores is None or softmax.attributes.get_int("axis", -1) != -1:
        return None
    bias = _made_by(scores.inputs[1], "Where")
    return bias.inputs[0] if bias is not None and _is_zero(bias.inputs[1]) else None


def _made_by(value: ir.Value | None, operator: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and (node.domain, node.op_type) == ("", operator) else None


def _is_zero(value: ir.Value | None) -> bool:
    import onnx_ir as ir

    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return tensor is not None and tensor.size == 1 and not tensor.numpy().any()
