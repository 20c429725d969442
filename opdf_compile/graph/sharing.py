"""One object for one weight: which Parameters of a module, or of several graphs, are the same.

Tied weights are two names of one Parameter. A file keeps them as two Parameters on one storage, so
identity is decided here by object first and by memory second.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.fx import GraphModule


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

    Args:
        graphs: The graph modules of one model; changed in place. The first wins.
    """
    first: dict[str, Tensor] = {}
    by_memory: dict[tuple[object, ...], Tensor] = {}
    for graph in graphs:
        for name, tensor in _tensors(graph):
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


def _tensors(module: nn.Module) -> Iterable[tuple[str, Tensor]]:
    yield from list(module.named_parameters(remove_duplicate=False))
    yield from list(module.named_buffers(remove_duplicate=False))


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


M = TypeVar("M")


def deep_copy(model: M, instead: Mapping[int, object] | None = None) -> M:
    """An independent copy of a module or program.

    Tensors that autograd computed are no leaves, and torch refuses to copy them; the hook of the
    old ``torch.nn.utils.weight_norm`` keeps one on the module. They are copied by value here.

    Args:
        model: What is copied.
        instead: What takes the place of objects that are not to be copied, by the object's id.
    """
    memo: dict[int, object] = dict(instead or {})
    if isinstance(model, nn.Module):
        for module in model.modules():
            for value in vars(module).values():
                if isinstance(value, Tensor) and not value.is_leaf:
                    memo[id(value)] = value.detach().clone()
    return copy.deepcopy(model, memo)
