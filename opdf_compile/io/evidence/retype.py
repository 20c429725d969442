"""Change every floating dtype of a traced graph: parameters, constants, casts and factories.

``module.double()`` reaches parameters and buffers only. A graph also holds dtypes as arguments
(Llama's RMSNorm casts to float32 and back), and casts inside nested graphs; here all of them move.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_aggregate

from opdf_compile.errors import ExportError
from opdf_compile.graph import all_graphs, deep_copy
from opdf_compile.io.evidence.half_range import narrowed

TO_FLOAT64: Mapping[torch.dtype, torch.dtype] = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex32: torch.complex128,
    torch.complex64: torch.complex128,
}
_ATEN = torch.ops.aten
_CHECKS = frozenset({_ATEN._assert_tensor_metadata.default})


def retyped(graph: GraphModule, mapping: Mapping[torch.dtype, torch.dtype]) -> GraphModule:
    """A copy of a graph in which every dtype in `mapping` is replaced by its image.

    Args:
        graph: The unlifted module of an ExportedProgram. It is not changed.
        mapping: What becomes what; other dtypes stay.

    Returns:
        The copy, which takes inputs of the new dtypes.

    Raises:
        ExportError: The graph reads the bits of a float, which have no counterpart.
    """
    with warnings.catch_warnings():
        # Copying a graph reconstructs its pytree specs, about which torch warns.
        warnings.simplefilter("ignore", FutureWarning)
        copied = deep_copy(graph)
    for part in list(all_graphs(copied)):
        _retype_nodes(part, mapping)
    _retype_tensors(copied, mapping)
    return copied


def cast_leaf(value: Any, mapping: Mapping[torch.dtype, torch.dtype]) -> Any:
    """A tensor in its new dtype; anything else as it is."""
    return value.to(mapping.get(value.dtype, value.dtype)) if isinstance(value, Tensor) else value


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Set torch's default dtype for a block.

    A graph leaves it to the default what ``ones(3)`` or the quotient of two integers is.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _retype_nodes(module: GraphModule, mapping: Mapping[torch.dtype, torch.dtype]) -> None:
    def leaf(value: Any) -> Any:
        return mapping.get(value, value) if isinstance(value, torch.dtype) else value

    for node in list(module.graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in _CHECKS:
            module.graph.erase_node(node)
            continue
        _refuse_bits(node)
        node.args = map_aggregate(node.args, leaf)
        node.kwargs = map_aggregate(node.kwargs, leaf)
        _disable_autocast(node)
    module.recompile()


def _refuse_bits(node: Node) -> None:
    if node.target is _ATEN.view.dtype:
        raise ExportError(
            f"the node {node.name} reads the bits of a tensor under another dtype, wanted "
            "arithmetic that has a meaning in every precision; export without a dtype change"
        )


def _disable_autocast(node: Node) -> None:
    """Autocast would lower the precision again; its arguments: (device, dtype, enabled, ...)."""
    if node.target is torch.ops.higher_order.wrap_with_autocast:
        node.args = (*node.args[:2], False, *node.args[3:])
    if node.target is torch.amp.autocast_mode._enter_autocast:
        node.args = (*node.args[:2], False, *node.args[3:])


def _retype_tensors(root: nn.Module, mapping: Mapping[torch.dtype, torch.dtype]) -> None:
    """Cast parameters, buffers and plain tensor attributes; one object stays one object."""
    done: dict[int, Tensor] = {}

    def convert(tensor: Tensor) -> Tensor:
        if tensor.dtype not in mapping:
            return tensor
        if id(tensor) not in done:
            new = narrowed(tensor.detach(), mapping[tensor.dtype])
            done[id(tensor)] = nn.Parameter(new) if isinstance(tensor, nn.Parameter) else new
        return done[id(tensor)]

    for module in list(root.modules()):
        for store in (module._parameters, module._buffers):
            for name, tensor in store.items():
                if tensor is not None:
                    store[name] = convert(tensor)  # type: ignore[assignment]
        for name, value in list(vars(module).items()):
            if isinstance(value, Tensor):
                setattr(module, name, convert(value))
