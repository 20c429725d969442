"""A trained student -> the file that it came from, with new numbers in its weights.

The original message is copied and nothing else in it is touched: node order, names, metadata,
operator sets and every other tensor stay as they are, in the field that they were stored in. The
metadata gets a record of which tensors are weights. `verify` compares all others by value.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from opdf_compile.artefacts import Constant, link, replace_record
from opdf_compile.errors import ExportError
from opdf_compile.io.dtypes import dtype_name
from opdf_compile.io.onnx_student.student import OnnxStudent, read_tensor

if TYPE_CHECKING:
    import onnx

# A protobuf message ends at 2 GiB.
_MOST_BYTES = 2_000_000_000


def write_back(student: OnnxStudent) -> onnx.ModelProto:
    """The student's file with its present weights.

    Raises:
        ExportError: A tensor has another shape or dtype than in the file, or the file is too large.
    """
    from onnx import ModelProto

    source = student.source
    state = {**dict(student.named_parameters()), **dict(student.named_buffers())}
    model = ModelProto()
    model.CopyFrom(source.proto)
    changed: list[str] = []
    for constant in link(model).main.constants():
        key = source.keys[constant.address]
        tensor = state.get(key)
        if tensor is None:
            continue
        trained = isinstance(tensor, torch.nn.Parameter) and tensor.requires_grad
        new = _fitting(constant, key, tensor.detach(), source.name)
        if _bits(new) != _bits(read_tensor(constant, source.name)):
            _store(constant.proto, new)
            trained = True
        if trained:
            changed.append(constant.name)
    replace_record(model, sorted(dict.fromkeys(changed)))
    if model.ByteSize() > _MOST_BYTES:
        raise ExportError(
            f"{source.name} has {model.ByteSize()} bytes with its data inlined, wanted at most "
            f"{_MOST_BYTES}; export the PyTorch model itself, which may keep weights in a second "
            "file"
        )
    return model


def _fitting(constant: Constant, key: str, tensor: Tensor, name: str) -> Tensor:
    wanted = read_tensor(constant, name)
    if tensor.shape != wanted.shape or tensor.dtype != wanted.dtype:
        raise ExportError(
            f"{key!r} is {_form(tensor)}, the file {name} holds {_form(wanted)}; an ONNX student "
            "keeps the shapes and dtypes of its file: convert it back, or export the PyTorch model"
        )
    return tensor.cpu().contiguous()


def _form(tensor: Tensor) -> str:
    return f"{dtype_name(tensor.dtype)}{list(tensor.shape)}"


def _bits(tensor: Tensor) -> bytes:
    """The bytes of a tensor as ONNX stores them: a NaN equals itself, -0.0 is not 0.0."""
    plain = tensor.view(torch.int16) if tensor.dtype is torch.bfloat16 else tensor
    raw: bytes = plain.numpy().tobytes()
    return raw


def _store(proto: onnx.TensorProto, tensor: Tensor) -> None:
    """Put numbers into the field that held the old ones."""
    if proto.HasField("raw_data"):
        proto.raw_data = _bits(tensor)
        return
    fields: dict[torch.dtype, tuple[Any, Iterable[Any]]] = {
        torch.float32: (proto.float_data, tensor.reshape(-1).tolist()),
        torch.float64: (proto.double_data, tensor.reshape(-1).tolist()),
    }
    half = tensor.element_size() == 2
    bits = tensor.reshape(-1).view(torch.int16).to(torch.int32) & 0xFFFF if half else tensor
    typed, numbers = fields.get(tensor.dtype, (proto.int32_data, bits.reshape(-1).tolist()))
    del typed[:]
    typed.extend(numbers)
