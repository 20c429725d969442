"""One object for one weight: which Parameters of a module, or of several graphs, are the same.

Tied weights are two names of one Parameter. A file keeps them as two Parameters on one storage, so
identity is decided here by object first and by memory second.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.overrides import TorchFunctionMode


def memory_key(tensor: Tensor) -> tuple[object, ...] | None:
    """What two tensors have in common when they view the same memory in the same way.

    None for tensors without memory of their own (meta tensors, empty tensors): those are never
    the same.
    """
    if tensor.is_meta or tensor.numel() == 0:
        return None
    return (
        tensor.untyped_storage().data_ptr(),
        tensor.storage_offset(),
        tuple(tensor.shape),
        tensor.stride(),
        tensor.dtype,
        str(tensor.device),
    )


def owner(module: nn.Module, target: str) -> tuple[nn.Module, str]:
    """The submodule that holds the dotted `target`, and the last name."""
    path, _, name = target.rpartition(".")
    return module.get_submodule(path), name


def unify(graphs: Sequence[GraphModule]) -> None:
    """Make equal names, and Parameters on one memory, one object across the graphs.

    The graph modules are of one model and are changed in place; the first wins.
    """
    first: dict[str, Tensor] = {}
    by_memory: dict[tuple[object, ...], Tensor] = {}
    for graph in graphs:
        for name, tensor in named_tensors(graph).items():
            kept = first.setdefault(name, tensor)
            key = memory_key(kept)
            if key is not None and isinstance(kept, nn.Parameter):
                kept = by_memory.setdefault(key, kept)
            if kept is not tensor and _same_thing(graph, name, kept, tensor):
                parent, last = owner(graph, name)
                setattr(parent, last, kept)


def _same_thing(graph: GraphModule, name: str, kept: Tensor, tensor: Tensor) -> bool:
    """Whether one name stands for one tensor.

    A constant that the tracer lifted (``lifted_tensor_0``) has its name from its position: two
    phases may use it for different values.
    """
    if kept.shape != tensor.shape:
        return False
    holder, last = owner(graph, name)
    constant = last in holder._non_persistent_buffers_set
    return not constant or torch.equal(kept, tensor)


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer under each of its names."""
    named: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    named.update(module.named_buffers(remove_duplicate=False))
    return named


def names_of_parameters(module: nn.Module) -> dict[int, tuple[str, ...]]:
    """All names of each Parameter, by id, in the module's own order."""
    names: dict[int, tuple[str, ...]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names[id(parameter)] = (*names.get(id(parameter), ()), name)
    return names


def is_weight_dtype(tensor: Tensor) -> bool:
    """Whether a tensor can be trained as a matrix: floating point, dense."""
    return tensor.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64) and (
        tensor.layout is torch.strided
    )


_Model = TypeVar("_Model")


class _ByValue(TorchFunctionMode):
    """Copies tensors that autograd computed by value, wherever a deep copy meets them."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is not Tensor.__deepcopy__ or args[0].is_leaf:
            return func(*args, **(kwargs or {}))
        return args[0].detach().clone()


def deep_copy(model: _Model, instead: Mapping[int, object] | None = None) -> _Model:
    """An independent copy of a module or program.

    A student may keep what its forward computed (features for a loss, a load-balancing term, the
    weight of an old ``weight_norm``) in attributes, containers, objects or hooks. Such tensors are
    no leaves, and torch refuses to copy them: the copy gets their values, without their history.

    Args:
        model: What is copied; it is not changed.
        instead: What takes the place of objects that are not to be copied, by the object's id.
    """
    with _ByValue():
        return copy.deepcopy(model, dict(instead or {}))
