"""Attributes that need not be said, because leaving them out says the same.

    ReduceMean(x, axes, noop_with_empty_axes=0)     becomes     ReduceMean(x, axes)

torch's exporter writes every default out. One that a later version of the operator brought is
unknown to the earlier one, and onnx's converter carries it over: the file of a CNN becomes an
invalid one of opset 17 by an attribute that says nothing. So an attribute that came after the
lowest opset on offer is written only where it says something else than its absence.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx_ir as ir

# Files are offered from this opset on.
LOWEST_OPSET = 13
# The earlier version did what another value of the attribute says.
_CHANGED = frozenset({("RoiAlign", "coordinate_transformation_mode")})


def leave_out_defaults(model: ir.Model) -> None:
    """Drop later attributes that have their default value, in place."""
    opset = model.opset_imports.get("", 0)
    for node in model.graph.all_nodes():
        if node.domain:
            continue
        for name, default in _later_defaults(node.op_type, opset).items():
            given = node.attributes.get(name)
            if given is not None and given.value == default:
                node.attributes.pop(name)


@functools.cache
def _later_defaults(op: str, opset: int) -> dict[str, Any]:
    """Defaults of the attributes that an operator got after the lowest opset on offer."""
    from onnx import defs, helper

    try:
        now = defs.get_schema(op, opset, "")
        then = defs.get_schema(op, LOWEST_OPSET, "").attributes
    except defs.SchemaError:
        return {}  # No such operator at that time: nothing to take it back to.
    later = {name: attribute for name, attribute in now.attributes.items() if name not in then}
    found = {
        name: helper.get_attribute_value(attribute.default_value)
        for name, attribute in later.items()
        if attribute.default_value.name and (op, name) not in _CHANGED
    }
    return {n: v.decode() if isinstance(v, bytes) else v for n, v in found.items()}
