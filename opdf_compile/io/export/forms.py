"""Operations in a form that torch's exporter cannot translate, brought into one that it can.

Each has a function that says what is wrong with it, some a file; here they are replaced,
all at once: a pass over the program costs seconds for a large model, and most need none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from opdf_compile.errors import ExportError
from opdf_compile.graph import CONVOLUTIONS, all_graphs, arguments
from opdf_compile.io.export.attention import ATTENTION, folded_attention, has_other_axes

_RSUB = torch.ops.aten.rsub.Scalar


def with_known_forms(program: ExportedProgram) -> ExportedProgram:
    """The program in operations that the exporter translates; itself where it needs no change.

    Args:
        program: It is not changed; the copy reads the same weights.

    Raises:
        ExportError: A convolution has as many groups as a free axis is long.
    """
    nodes = [node for part in all_graphs(program.graph_module) for node in part.graph.nodes]
    _check_groups(nodes)
    needed: dict[Any, Callable[..., Any]] = {
        operator: replacement
        for operator, is_odd, replacement in _FORMS
        if any(node.target is operator and is_odd(node) for node in nodes)
    }
    if not needed:
        return program
    brought: ExportedProgram = program.run_decompositions(needed)
    return brought


def _check_groups(nodes: list[Node]) -> None:
    """Filters of each example's own (CondConv) make the batch the groups of a convolution."""
    for node in nodes:
        if node.target in CONVOLUTIONS and isinstance(arguments(node)["groups"], Node):
            raise ExportError(
                f"the number of groups of the convolution {node.name} follows from an input's "
                "size, wanted a fixed number, since an ONNX file holds no other; export with "
                "dynamic=False, for one size"
            )


def _changes_dtype(node: Node) -> bool:
    """Whether a number minus a tensor has another dtype than the tensor: 1.0 - mask of integers.

    The exporter then casts the tensor, runs `aten.sub.Tensor(1.0, tensor)` to see the result, and
    finds no such operator: its first operand must be a tensor (XLNet's mask).
    """
    tensor, result = node.args[0], node.meta.get("val")
    value = tensor.meta.get("val") if isinstance(tensor, Node) else None
    return isinstance(value, Tensor) and isinstance(result, Tensor) and value.dtype != result.dtype


def _cast_before(x: Tensor, other: float, alpha: float = 1) -> Any:
    dtype = torch.result_type(x, other)
    return NotImplemented if x.dtype == dtype else _RSUB(x.to(dtype), other, alpha)


def _keeps_an_axis(node: Node) -> bool:
    """Whether a squeeze names an axis of another size than 1, which stays as it is.

    ONNX's Squeeze fails there (the outputs of transformers' time series models).
    """
    value = node.args[0].meta.get("val") if isinstance(node.args[0], Node) else None
    result = node.meta.get("val")
    if not isinstance(value, Tensor) or not isinstance(result, Tensor):
        return False
    return value.ndim - result.ndim < len(_axes(node.args[1]))


def _squeeze_ones(x: Tensor, axes: Any) -> Any:
    ones = [axis for axis in _axes(axes) if x.shape[axis] == 1]
    if len(ones) == len(_axes(axes)):
        return NotImplemented
    return torch.ops.aten.squeeze.dims(x, ones) if ones else torch.ops.aten.alias.default(x)


def _axes(given: Any) -> list[int]:
    return [given] if isinstance(given, int) else list(given)


_FORMS: tuple[tuple[Any, Callable[[Node], bool], Callable[..., Any]], ...] = (
    (ATTENTION, has_other_axes, folded_attention),
    (_RSUB, _changes_dtype, _cast_before),
    (torch.ops.aten.squeeze.dim, _keeps_an_axis, _squeeze_ones),
    (torch.ops.aten.squeeze.dims, _keeps_an_axis, _squeeze_ones),
)
