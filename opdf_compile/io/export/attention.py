"""Attention as every opset says it: products and a softmax, over four axes.

torch's exporter knows scaled dot product attention of (batch, heads, length, width) alone; Hiera
has one axis more. The axes in front are one batch to it, so they are folded together and spread
out again: the same products, and two reshapes in the file.

From opset 23 on the exporter writes ONNX's own operator Attention. ONNX Runtime 1.31 refuses that
where torch broadcasts (a mask of (batch, 1, 1, keys) as of any padding, one key for a whole batch),
and gives zeros where a mask of lowest numbers, in place of booleans, leaves a query no key: torch
gives the mean of all values. So attention is translated for opset 23 as it is for those before.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

ATTENTION = torch.ops.aten.scaled_dot_product_attention.default
_AXES = 4


def translations() -> dict[Any, Any]:
    """Translations to use in place of the exporter's choice, by operator."""
    from onnxscript.function_libs.torch_lib.ops.nn import aten_scaled_dot_product_attention

    return {ATTENTION: aten_scaled_dot_product_attention}


def has_other_axes(node: Node) -> bool:
    """Whether an attention's query has other than four axes."""
    query = node.args[0].meta.get("val") if isinstance(node.args[0], Node) else None
    return isinstance(query, Tensor) and query.ndim != _AXES


def folded_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> Any:
    """`aten.scaled_dot_product_attention` over four axes where it has others."""
    if query.ndim == _AXES:
        return NotImplemented
    lead = query.shape[:-3]
    folded = [_folded(tensor) for tensor in (query, key, value)]
    if attn_mask is not None and attn_mask.ndim > 2:
        attn_mask = _folded(attn_mask.expand(*query.shape[:-2], *attn_mask.shape[-2:]))
    result: Tensor = ATTENTION(*folded, attn_mask, dropout_p, is_causal, **options)
    return result.reshape(*lead, *result.shape[1:])


def _folded(tensor: Tensor) -> Tensor:
    """(..., heads, length, width) with all axes in front of the heads as one."""
    if tensor.ndim < _AXES:
        return tensor[None]
    return tensor.flatten(0, tensor.ndim - _AXES)
