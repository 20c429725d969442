"""Values and attributes of an ONNX graph in a form that can be compared with ``==``.

Two tensors are the same constant when dtype, shape and bytes agree, however the file stores them
(raw bytes, typed fields, another file, a Constant node). Two nodes have the same attributes when
they agree after the defaults of the operator's schema have been written out.
"""

from __future__ import annotations

import functools
import hashlib
import math
import struct
import sys
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from opdf_compile.artefacts import plain_domain
from opdf_compile.errors import ArtefactError
from opdf_compile.files import sha256_of_part

if TYPE_CHECKING:
    import onnx

# Bytes of one element by ONNX element type, where all of its bits belong to it: float32, int64,
# int32, float64, float16, uint8, int8, uint16, int16, uint32 and uint64.
_WHOLE_BYTES = {1: 4, 7: 8, 6: 4, 11: 8, 10: 2, 2: 1, 3: 1, 4: 2, 5: 2, 12: 4, 13: 8}

# So many numbers of a constant are shown in a message.
_FEW = 8

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


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor that a graph carries: an initialiser or the value of a Constant node.

    Attributes:
        name: The value's name in its graph.
        proto: Where the numbers are.
        folder: Folder of the model file, for external data.
        parameter: Whether the exporter recorded it as a parameter of the model.
    """

    name: str
    proto: onnx.TensorProto | onnx.SparseTensorProto
    folder: str
    parameter: bool

    @property
    def dtype(self) -> int:
        """ONNX element type."""
        return self._dense.data_type

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Dense shape."""
        return tuple(self.proto.dims)

    @property
    def _dense(self) -> onnx.TensorProto:
        import onnx

        return self.proto.values if isinstance(self.proto, onnx.SparseTensorProto) else self.proto

    @cached_property
    def fingerprint(self) -> Hashable:
        """Equal for equal dtype, shape and bytes."""
        import onnx

        if isinstance(self.proto, onnx.SparseTensorProto):
            parts = (self.proto.values, self.proto.indices)
            return ("sparse", self.shape, *(tensor_fingerprint(p, self.folder) for p in parts))
        return tensor_fingerprint(self.proto, self.folder)

    @property
    def is_small(self) -> bool:
        """Whether its numbers fit into a message."""
        return math.prod(self.shape) <= _FEW

    def numbers(self) -> str:
        """The values in words; for a small constant."""
        from onnx import numpy_helper

        text = str(numpy_helper.to_array(self._dense, self.folder).tolist())
        return text.replace(str(2**63 - 1), "end")

    def __str__(self) -> str:
        """Dtype and shape as in ``float32[64, 3, 7, 7]``."""
        return f"{element_type(self.dtype)}{list(self.shape)}"


def same_constant(candidate: Constant, reference: Constant) -> bool:
    """Whether two constants may stand for each other.

    Parameters need equal dtype and shape. Anything else needs equal values; so does a constant
    that only one file calls a parameter, because the exporter may have merged an all-zero
    parameter with an all-zero constant.
    """
    if (candidate.dtype, candidate.shape) != (reference.dtype, reference.shape):
        return False
    if candidate.parameter and reference.parameter:
        return True
    return candidate.fingerprint == reference.fingerprint


def tensor_fingerprint(tensor: onnx.TensorProto, folder: str) -> Hashable:
    """Return a value that is equal for equal dtype, shape and bytes.

    Args:
        tensor: The tensor, stored in whichever field.
        folder: Folder of the model file, for external data.

    Raises:
        ArtefactError: The data cannot be read or does not fill the shape.
    """
    from onnx import TensorProto, numpy_helper

    head = (tensor.data_type, tuple(tensor.dims))
    # The common case: the file's bytes are the numbers' own, and nothing needs unpacking.
    if (
        sys.byteorder == "little"
        and tensor.data_location == TensorProto.DEFAULT
        and len(tensor.raw_data) == math.prod(head[1]) * _WHOLE_BYTES.get(tensor.data_type, -1)
    ):
        return (*head, hashlib.sha256(tensor.raw_data).digest())
    if tensor.data_type == TensorProto.STRING:
        return (*head, tuple(tensor.string_data))
    try:
        if sys.byteorder == "little" and tensor.data_location == TensorProto.EXTERNAL:
            part = _plain_part(tensor, folder)
            if part is not None:
                return (*head, sha256_of_part(*part))
        array = numpy_helper.to_array(tensor, folder)
    # numpy, ml_dtypes, the file system and onnx's checker each raise their own class here; all
    # of them say that this tensor cannot be read.
    except Exception as error:
        raise ArtefactError(
            f"the data of initialiser {tensor.name!r} cannot be read ({error}); export it again"
        ) from error
    return (*head, hashlib.sha256(array.tobytes()).digest())


def _plain_part(tensor: onnx.TensorProto, folder: str) -> tuple[Path, int, int] | None:
    """File, offset and length of external numbers whose bytes are their own; else None.

    Reading them in pieces keeps a constant of gigabytes out of memory. Names that lead out of the
    folder are left to onnx, which refuses them.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location, length = entries.get("location", ""), int(entries.get("length", -1))
    path = Path(folder) / location
    if Path(location).name != location or path.is_symlink() or not path.is_file():
        return None
    if length != math.prod(tensor.dims) * _WHOLE_BYTES.get(tensor.data_type, -1):
        return None
    return path, int(entries.get("offset", 0)), length


@functools.cache
def element_type(code: int) -> str:
    """Name an ONNX element type as numpy does: 1 -> ``float32``."""
    from onnx import TensorProto

    name = TensorProto.DataType.Name(code) if code in TensorProto.DataType.values() else str(code)
    return {"FLOAT": "float32", "DOUBLE": "float64"}.get(name, name.lower())


def is_floating(code: int) -> bool:
    """Whether an ONNX element type holds real or complex numbers."""
    return element_type(code).startswith(("float", "bfloat", "complex"))


def explicit_attributes(
    node: onnx.NodeProto,
    opsets: Mapping[str, int],
    *,
    folder: str,
    weight_shapes: Mapping[int, tuple[int, ...]],
    declared: Iterable[onnx.AttributeProto] = (),
) -> dict[str, Hashable]:
    """Attributes of a node by name, with the defaults that were left out; no subgraphs.

    Args:
        node: The node.
        opsets: Operator set version by domain, as in force for the node.
        folder: Folder of the model file, for external data.
        weight_shapes: Shapes of those inputs that are constants, by place.
        declared: Defaults that a local function declares, for a node that calls it.
    """
    import onnx

    graphs = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
    found = {a.name: _attribute_value(a, folder) for a in node.attribute if a.type not in graphs}
    for attribute in declared:
        found.setdefault(attribute.name, _attribute_value(attribute, folder))
    domain = plain_domain(node.domain)
    version = opsets.get(domain, 0)
    if domain in _RUNTIME_DOMAINS:
        domain, version = "", opsets.get("", 0)
    for name, value in _schema_defaults(node.op_type, domain, version):
        found.setdefault(name, value)
    if domain == "":
        for name, value in _spatial_defaults(node.op_type, found, weight_shapes):
            found.setdefault(name, value)
    return found


def _attribute_value(attribute: onnx.AttributeProto, folder: str) -> Hashable:
    from onnx import AttributeProto as A

    kind = attribute.type
    if attribute.ref_attr_name:
        return ("function's attribute", attribute.ref_attr_name)
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
        return ("tensor", tensor_fingerprint(attribute.t, folder))
    if kind == A.TENSORS:
        return ("tensors", tuple(tensor_fingerprint(t, folder) for t in attribute.tensors))
    # Sparse tensors and types are rare; their serialised form may differ for equal content, which
    # errs on the side of refusing.
    rest = A()
    rest.CopyFrom(attribute)
    rest.doc_string = ""
    return ("other", rest.SerializeToString(deterministic=True))


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
        defaults.append(("value", ("tensor", tensor_fingerprint(zero, ""))))
    return tuple(defaults)


def _spatial_defaults(
    op: str, found: Mapping[str, Hashable], weight_shapes: Mapping[int, tuple[int, ...]]
) -> list[tuple[str, Hashable]]:
    if op not in _SPATIAL_WEIGHT:
        return []
    place = _SPATIAL_WEIGHT[op]
    kernel = found.get("kernel_shape")
    if kernel is None and place is not None and place in weight_shapes:
        kernel = ("ints", weight_shapes[place][2:])
    if not isinstance(kernel, tuple) or not isinstance(kernel[1], tuple):
        return []
    rank = len(kernel[1])
    defaults: list[tuple[str, Hashable]] = [
        ("kernel_shape", kernel),
        ("strides", ("ints", (1,) * rank)),
        ("dilations", ("ints", (1,) * rank)),
        ("pads", ("ints", (0,) * (2 * rank))),
    ]
    if op == "ConvTranspose":
        defaults.append(("output_padding", ("ints", (0,) * rank)))
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
