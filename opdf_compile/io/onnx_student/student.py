"""`OnnxStudent`: an ONNX file as a torch module that can be trained and traced."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from opdf_compile.artefacts import Address, Constant, LinkedModel, dense, element_type, link
from opdf_compile.errors import ArtefactError
from opdf_compile.graph import Match, Refusal
from opdf_compile.io.dtypes import dtype_name
from opdf_compile.io.onnx_student.constant_roles import ConstantRole, roles
from opdf_compile.io.onnx_student.interpreter import Interpreter
from opdf_compile.io.onnx_student.operands import (
    LARGEST_HOST,
    Host,
    Operand,
    as_tensor,
    torch_dtype,
)

if TYPE_CHECKING:
    import onnx

# A list of numbers this long may be limits or scales, which operators want as numbers.
_MOST_SETTINGS = 64


@dataclass(frozen=True, eq=False)
class OnnxSource:
    """The file behind a student. It is never changed, so that copies of a student share it.

    Attributes:
        proto: The file as it was read, external data included.
        model: What is run: the file with its local functions inlined.
        name: What messages call it.
        inputs: Names of the inputs, as torch sees them, to the file's own.
        axes: For each input, a letter (free) or number per axis.
        dtypes: The dtype of each input.
        keys: The key of each floating-point constant.
        fixed: Inputs of the file that have one value, by the file's name.
    """

    proto: onnx.ModelProto
    model: LinkedModel
    name: str
    inputs: Mapping[str, str]
    axes: Mapping[str, tuple[str | int, ...]]
    dtypes: Mapping[str, torch.dtype]
    keys: Mapping[Address, str]
    fixed: Mapping[str, Host] = field(default_factory=dict)

    @property
    def output_names(self) -> list[str]:
        """Names of the outputs, in order."""
        return [value.name for value in self.model.main.outputs]

    def __deepcopy__(self, _memo: dict[int, Any]) -> OnnxSource:
        return self

    def __getstate__(self) -> dict[str, Any]:
        # Links may lead through thousands of nodes, deeper than pickle can follow.
        return {**vars(self), "model": self.model.proto}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, model=link(state["model"]))


class OnnxStudent(nn.Module):
    """An ONNX graph as a module; `load_onnx` makes it.

    Its parameters are the weights of MatMul, Gemm, Conv and ConvTranspose under the names that
    their initialisers have in the file; everything else that the file carries are buffers, so that
    training changes matched weights alone. One output comes back as a tensor, several as a dict by
    their names in the file.

    Attributes:
        source: The file.
        notes: What a user should know, in sentences.
    """

    def __init__(self, source: OnnxSource, *, train_all: bool = False) -> None:
        super().__init__()
        self.source = source
        self.notes: tuple[str, ...] = ()
        self._hosts: dict[Address, Host] = {}
        # Weights of products, with the groups of those that are convolutions.
        self._products: dict[str, int] = {}
        self._columns: set[str] = set()
        self._paths: dict[Address, tuple[list[str], str]] = {}
        self._fill(train_all)
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        self.__signature__ = inspect.Signature([inspect.Parameter(n, kind) for n in source.inputs])

    @property
    def dynamic(self) -> dict[str, tuple[str | int | None, ...]]:
        """A letter (free) or number (fixed) per axis of each input, as `trace` takes it."""
        return {name: tuple(axes) for name, axes in self.source.axes.items()}

    @property
    def forward(self) -> Callable[..., Any]:  # type: ignore[override]
        """The graph, as a function of the file's inputs."""

        # torch.export names inputs by the signature, and wants a function with code of its own.
        def forward(*args: Any, **kwargs: Any) -> Any:
            return self.compute(self.__signature__.bind(*args, **kwargs).arguments)

        forward.__signature__ = self.__signature__  # type: ignore[attr-defined]
        return forward

    def weight_rows(self) -> list[Match | Refusal]:
        """The trainable weights as matches, for plans that are made before tracing."""
        return [
            Match(
                key=name,
                shape=tuple(p.shape),
                dtype=dtype_name(p.dtype),
                transposed=name in self._columns and p.ndim == 2,
                kernel=math.prod(p.shape[2:]),
                groups=self._products[name],
            )
            for name, p in self.named_parameters()
            if p.requires_grad and name in self._products
        ]

    def compute(self, inputs: Mapping[str, Any]) -> Any:
        """Run the graph on inputs by their torch names."""
        model = self.source.model
        device = next((t.device for t in (*self.parameters(), *self.buffers())), None)
        given: dict[str, Operand] = dict(self.source.fixed)
        given.update({self.source.inputs[name]: value for name, value in inputs.items()})
        interpreter = Interpreter(model, self._constant, device or torch.device("cpu"))
        known = {model.main.values[name]: value for name, value in given.items()}
        outputs = interpreter.run(model.main, known)
        tensors = [as_tensor(value, device or torch.device("cpu")) for value in outputs]
        if len(tensors) == 1:
            return tensors[0]
        return dict(zip(self.source.output_names, tensors, strict=True))

    def extra_repr(self) -> str:
        """File and size, for `print`."""
        return f"{self.source.name}, {len(self.source.model.main.nodes)} nodes"

    def _constant(self, constant: Constant) -> Operand:
        known = self._hosts.get(constant.address)
        if known is None:
            return self._tensor(constant.address)
        # A copy of the student reads its own tensor, so the link is made here.
        kept = constant.address in self._paths
        read = partial(self._tensor, constant.address) if kept else None
        return Host(known.array, known.dtype, read)

    def _tensor(self, address: Address) -> Tensor:
        path, name = self._paths[address]
        module: Any = self
        for part in path:
            module = module._modules[part]
        found = module._parameters.get(name)
        tensor: Tensor = module._buffers[name] if found is None else found
        return tensor

    def _fill(self, train_all: bool) -> None:
        constants = {c.address: c for c in self.source.model.main.constants()}
        tensors = {a: read_tensor(c, self.source.name) for a, c in constants.items()}
        # A sparse tensor keeps its numbers: the file has no room for what training makes of zeros.
        ranks = {
            address: tensor.ndim
            for address, tensor in tensors.items()
            if tensor.dtype.is_floating_point and tensor.numel() > 1
            if not constants[address].is_sparse
        }
        known = roles(self.source.model.main, ranks, train_all=train_all)
        for address, tensor in tensors.items():
            role, columns, groups = known.get(address, ("buffer", False, 1))
            if role == "weight":
                self._products[self.source.keys[address]] = groups
            if role == "weight" and columns:
                self._columns.add(self.source.keys[address])
            if role == "buffer" and _is_small(tensor):
                self._hosts[address] = Host(_objects(tensor), tensor.dtype)
                if not tensor.dtype.is_floating_point:
                    continue
            self._register(address, self.source.keys[address], tensor, role)

    def _register(self, address: Address, key: str, tensor: Tensor, role: ConstantRole) -> None:
        *path, name = key.split(".")
        module: nn.Module = self
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            inner = module._modules[part]
            assert inner is not None
            module = inner
        self._paths[address] = (path, name)
        if role == "buffer":
            module.register_buffer(name, tensor)
        else:
            module.register_parameter(name, nn.Parameter(tensor, requires_grad=role != "frozen"))


def read_tensor(constant: Constant, name: str) -> Tensor:
    """The numbers of a constant as a torch tensor of its own.

    Raises:
        ArtefactError: torch has no such dtype, or the data does not fill the shape.
    """
    from onnx import numpy_helper

    dtype = torch_dtype(constant.dtype)
    if dtype is None:
        raise ArtefactError(
            f"{name} holds {constant.name!r} as {element_type(constant.dtype)}, which torch does "
            "not calculate in; give the model before it was quantised, or the PyTorch model that "
            "it was exported from"
        )
    proto = constant.proto
    try:
        array = numpy_helper.to_array(dense(proto) if constant.is_sparse else proto)
        if dtype is torch.bfloat16:
            bits = torch.from_numpy(array.view("uint16").copy())
            return bits.view(torch.bfloat16)
        # torch owns its memory: numpy's may be a read-only view of the message.
        return torch.from_numpy(array.copy())
    # numpy and onnx raise their own classes for data that does not fit its shape.
    except (ValueError, TypeError, RuntimeError) as error:
        raise ArtefactError(
            f"{name} holds {constant.name!r} with data that does not fill its shape "
            f"{list(proto.dims)} ({error}); export the model again"
        ) from error


def _is_small(tensor: Tensor) -> bool:
    if tensor.dtype.is_complex:
        return False
    return tensor.numel() <= (_MOST_SETTINGS if tensor.dtype.is_floating_point else LARGEST_HOST)


def _objects(tensor: Tensor) -> Any:
    import numpy as np

    objects = np.empty(tuple(tensor.shape), dtype=object)
    for place in np.ndindex(objects.shape):
        objects[place] = tensor[place].item()
    return objects
