"""Reductions: axes by attribute in older operator sets, by input in newer ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from opdf_compile.io.onnx_student.operands import Operand, numbers
from opdf_compile.io.onnx_student.operator_table import Call, operator


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _log_sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.sum(axes, keepdim=keep).log()


def _plain_sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.sum(axes, keepdim=keep, dtype=x.dtype)


_REDUCE: dict[str, Callable[[Tensor, list[int], bool], Tensor]] = {
    "ReduceL1": lambda x, axes, keep: _plain_sum(x.abs(), axes, keep),
    "ReduceL2": lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keepdim=keep),
    "ReduceLogSum": _log_sum,
    "ReduceLogSumExp": lambda x, axes, keep: x.logsumexp(axes, keepdim=keep),
    "ReduceMax": lambda x, axes, keep: x.amax(axes, keepdim=keep),
    "ReduceMean": lambda x, axes, keep: x.mean(axes, keepdim=keep),
    "ReduceMin": lambda x, axes, keep: x.amin(axes, keepdim=keep),
    "ReduceProd": _product,
    "ReduceSum": _plain_sum,
    "ReduceSumSquare": lambda x, axes, keep: _plain_sum(x.square(), axes, keep),
}


@operator(*_REDUCE, numbers=(1,))
def reduce(call: Call, x: Tensor, given: Operand | None = None) -> Tensor:
    """Over the given axes; over all where none are given."""
    axes = call.get("axes") or [int(axis) for axis in numbers(given)]
    if not axes and call.get("noop_with_empty_axes", 0):
        return _REDUCE[call.op](x.unsqueeze(-1), [-1], False)
    axes = axes or list(range(x.ndim))
    return _REDUCE[call.op](x, axes, bool(call.get("keepdims", 1))) if axes else x.clone()


@operator("ArgMax", "ArgMin")
def arg(call: Call, x: Tensor) -> Tensor:
    """The place of the largest or smallest element, the first or with an attribute the last."""
    axis, keep = call.get("axis", 0), bool(call.get("keepdims", 1))
    last = call.get("select_last_index", 0)
    seen = x.flip(axis) if last else x
    found = (torch.argmax if call.op == "ArgMax" else torch.argmin)(seen, axis, keepdim=keep)
    return x.shape[axis] - 1 - found if last else found


@operator("TopK", numbers=(1,))
def top_k(call: Call, x: Tensor, given: Operand | None = None) -> Any:
    """The k largest or smallest elements of an axis, with their places."""
    k = call.get("k") if given is None else numbers(given)[0]
    largest, in_order = bool(call.get("largest", 1)), bool(call.get("sorted", 1))
    found = torch.topk(x, k, call.get("axis", -1), largest=largest, sorted=in_order)
    return found.values, found.indices
