"""Values and attributes of an ONNX graph in a form that can be compared with ``==``.

Two tensors are the same constant when dtype, shape and bytes agree, however the file stores them
(raw bytes, typed fields, another file, a Constant node). Two nodes have the same attributes when
they agree after the defaults of the operator's schema have been written out.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Hashable, Iterable, Mapping
from typing import TYPE_CHECKING

from opdf_compile.artefacts import Constant, Node, element_type, fingerprint_of

if TYPE_CHECKING:
    import onnx

# ONNX Runtime's own copies of ONNX operators, met in a graph that it has optimised; onnx has no
# schema for them, but their attributes and defaults are those of the originals.
_RUNTIME_DOMAINS = ("com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc")

# These operators take a size per spatial axis and document "1 (0) along each axis when not
# present"; a schema cannot hold a default whose length depends on the input. The number is the
# place of the weight, None where kernel_shape itself is required.
_SPATIAL_WEIGHT: Mapping[str, int | None] = {
    "Conv": 1,
    "ConvInteger": 1,
    "ConvTranspose": 1,
    "DeformConv": 1,
    "FusedConv": 1,
    "QLinearConv": 3,
    "AveragePool": None,
    "LpPool": None,
    "MaxPool": None,
}


def same_constant(candidate: Constant, reference: Constant) -> bool:
    """Whether two constants may stand for each other.

    Parameters need equal dtype and shape. Anything else needs equal values; so does a constant
    that only one file calls a parameter, because the exporter may have merged an all-zero
    parameter with an all-zero constant.
    """
    if (candidate.dtype, candidate.shape) != (reference.dtype, reference.shape):
        return False
    # Training moves parameters: two exports of one student differ in them and nowhere else.
    if candidate.parameter and reference.parameter:
        return True
    return candidate.fingerprint == reference.fingerprint


def called_operator(node: Node) -> tuple[str, str, str]:
    """Domain, operator and overload; a call of a local function, whose name is free, has none."""
    if node.function is not None:
        return ("", "a local function", "")
    return (node.domain, node.op, node.proto.overload)


def explicit_attributes(node: Node) -> dict[str, Hashable]:
    """Attributes of a node by name, with the defaults that were left out; no subgraphs."""
    found = _written(node, node.proto.attribute)
    if node.function is not None and node.function.function is not None:
        found = _written(node, node.function.function.attribute_proto) | found
    return _defaults(node, found) | found


def all_default(node: Node) -> bool:
    """Whether nothing is written at a node, whose defaults depend on no operand either."""
    return not (node.proto.attribute or node.function or node.op in _SPATIAL_WEIGHT)


def settings(node: Node) -> dict[str, Hashable]:
    """Attributes that are not at their defaults."""
    usual = _defaults(node, {})
    return {k: v for k, v in explicit_attributes(node).items() if usual.get(k) != v}


def _written(node: Node, attributes: Iterable[onnx.AttributeProto]) -> dict[str, Hashable]:
    import onnx

    graphs = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
    folder = node.graph.folder
    return {a.name: _attribute_value(a, folder) for a in attributes if a.type not in graphs}


def _defaults(node: Node, found: Mapping[str, Hashable]) -> dict[str, Hashable]:
    """What the operator takes for attributes that are not written, given those that are."""
    domain, version = node.domain, node.version
    if domain in _RUNTIME_DOMAINS:
        domain, version = "", node.graph.opsets.get("", 0)
    # One exporter writes `strides=[1, 1]` out, another leaves it to the default: the same node.
    defaults = dict(_schema_defaults(node.op, domain, version))
    return defaults if domain else _spatial_defaults(node, found) | defaults


def _attribute_value(attribute: onnx.AttributeProto, folder: str) -> Hashable:
    from onnx import AttributeProto as A

    kind = attribute.type
    # In a function's body the caller gives the value; equal bodies name the same attribute.
    if attribute.ref_attr_name:
        return ("function's attribute", attribute.ref_attr_name)
    # As bytes: a NaN is then itself, and 0.0 is not -0.0.
    if kind == A.FLOAT:
        return ("float", struct.pack("<f", attribute.f))
    if kind == A.INT:
        return ("int", attribute.i)
    if kind == A.STRING:
        return ("string", attribute.s)
    if kind == A.FLOATS:
        return ("floats", struct.pack(f"<{len(attribute.floats)}f", *attribute.floats))
    if kind == A.INTS:
        return ("ints", tuple(attribute.ints))
    if kind == A.STRINGS:
        return ("strings", tuple(attribute.strings))
    if kind == A.TENSOR:
        return ("tensor", fingerprint_of(attribute.t, folder))
    if kind == A.TENSORS:
        return ("tensors", tuple(fingerprint_of(t, folder) for t in attribute.tensors))
    # Sparse tensors and types are rare; their serialised form may differ for equal content, which
    # errs on the side of refusing.
    rest = A()
    rest.CopyFrom(attribute)
    rest.doc_string = ""
    return ("other", rest.SerializeToString(deterministic=True))


# A graph has thousands of nodes, and a few dozen operators to ask onnx about.
@functools.lru_cache(maxsize=4096)
def _schema_defaults(op: str, domain: str, version: int) -> tuple[tuple[str, Hashable], ...]:
    """Defaults of the operator's schema; nothing for an operator that onnx does not know."""
    import onnx

    try:
        schema = onnx.defs.get_schema(op, version, domain)
    except onnx.defs.SchemaError:
        return ()
    defaults = [
        (name, _attribute_value(attribute.default_value, ""))
        for name, attribute in schema.attributes.items()
        if attribute.default_value.name
    ]
    if op == "ConstantOfShape":
        # Its default is a tensor (one float32 zero), which the schema only tells in words.
        zero = onnx.helper.make_tensor("value", onnx.TensorProto.FLOAT, [1], [0.0])
        defaults.append(("value", ("tensor", fingerprint_of(zero))))
    return tuple(defaults)


def _spatial_defaults(node: Node, found: Mapping[str, Hashable]) -> dict[str, Hashable]:
    if node.op not in _SPATIAL_WEIGHT:
        return {}
    place = _SPATIAL_WEIGHT[node.op]
    kernel = found.get("kernel_shape")
    if kernel is None and place is not None and place < len(node.inputs):
        weight = node.inputs[place].constant
        kernel = None if weight is None else ("ints", weight.shape[2:])
    if not isinstance(kernel, tuple) or not isinstance(kernel[1], tuple):
        return {}
    rank = len(kernel[1])
    defaults: dict[str, Hashable] = {
        "kernel_shape": kernel,
        "strides": ("ints", (1,) * rank),
        "dilations": ("ints", (1,) * rank),
        "pads": ("ints", (0,) * (2 * rank)),
    }
    if node.op == "ConvTranspose":
        defaults["output_padding"] = ("ints", (0,) * rank)
    return defaults


def show_attribute(value: Hashable) -> str:
    """Word a canonical attribute for a message."""
    if not isinstance(value, tuple):
        return str(value)
    kind, content = value
    if kind in ("float", "floats"):
        numbers = [n for (n,) in struct.iter_unpack("<f", content)]
        return f"{numbers[0]:g}" if kind == "float" else str(numbers)
    if kind == "ints":
        return str(list(content))
    if kind == "string":
        return str(content.decode("utf-8", "replace"))
    if kind == "tensor":
        return f"a tensor {element_type(content[0])}{list(content[1])}"
    return str(content) if kind in ("int", "strings") else str(kind)
