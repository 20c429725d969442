"""Attention over tensors of other than four axes, brought to four for the exporter's sake.

torch's exporter knows scaled dot product attention of (batch, heads, length, width) alone; Hiera
has one axis more. The axes in front are one batch to it, so they are folded together and spread
out again: the same products, and two reshapes in the file.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

_ATTENTION = torch.ops.aten.scaled_dot_product_attention.default
_AXES = 4


def with_four_axes(program: ExportedProgram) -> ExportedProgram:
    """The program whose attentions the exporter can translate; itself where they are already.

    Args:
        program: It is not changed; the copy reads the same weights.
    """
    modules = [m for m in program.graph_module.modules() if isinstance(m, GraphModule)]
    if not any(_is_odd(node) for module in modules for node in module.graph.nodes):
        return program
    brought: ExportedProgram = program.run_decompositions({_ATTENTION: _attention})
    return brought


def _is_odd(node: Node) -> bool:
    if node.target is not _ATTENTION or not isinstance(node.args[0], Node):
        return False
    query = node.args[0].meta.get("val")
    return isinstance(query, Tensor) and query.ndim != _AXES


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> Any:
    if query.ndim == _AXES:
        return NotImplemented
    lead = query.shape[:-3]
    folded = [_folded(tensor) for tensor in (query, key, value)]
    if attn_mask is not None and attn_mask.ndim > 2:
        attn_mask = _folded(attn_mask.expand(*query.shape[:-2], *attn_mask.shape[-2:]))
    result: Tensor = _ATTENTION(*folded, attn_mask, dropout_p, is_causal, **options)
    return result.reshape(*lead, *result.shape[1:])


def _folded(tensor: Tensor) -> Tensor:
    """(..., heads, length, width) with all axes in front of the heads as one."""
    if tensor.ndim < _AXES:
        return tensor[None]
    return tensor.flatten(0, tensor.ndim - _AXES)
