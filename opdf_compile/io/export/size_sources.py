"""One source for each dynamic size.

Two inputs that share an axis (ids and mask share batch and length) give torch.export the choice of
where a size is read, and it chooses differently for a module and for a program that was traced
before. Here every size that equals an axis of an input is read from the first input that has it,
so that the same model gives the same graph whichever way it came.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir


def read_sizes_from_first_input(model: ir.Model) -> None:
    """Point every ``Shape(x, start=a, end=a+1)`` at the first input axis of the same symbol.

    Args:
        model: Changed in place. Dimensions still carry the symbols of torch.export.
    """
    import onnx_ir as ir

    first: dict[str, tuple[ir.Value, int]] = {}
    for value in model.graph.inputs:
        for axis, size in enumerate(value.shape or ()):
            if isinstance(size, ir.SymbolicDim) and size.value is not None:
                first.setdefault(str(size.value), (value, axis))
    for node in model.graph:
        if node.op_type != "Shape" or node.domain != "" or node.inputs[0] is None:
            continue
        shape = node.inputs[0].shape
        start = node.attributes.get("start")
        end = node.attributes.get("end")
        if shape is None or end is None:
            continue
        axis = start.as_int() if start is not None else 0
        if end.as_int() != axis + 1 or not 0 <= axis < len(shape):
            continue
        size = shape[axis]
        home = first.get(str(size.value)) if isinstance(size, ir.SymbolicDim) else None
        if home is None:
            continue
        node.replace_input_with(0, home[0])
        node.attributes["start"] = ir.AttrInt64("start", home[1])
        node.attributes["end"] = ir.AttrInt64("end", home[1] + 1)
