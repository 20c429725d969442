"""If. A condition on sizes or constants is decided at once; one on data becomes torch.cond."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from opdf_compile.io.onnx_student.operands import Host, Operand, as_tensor, only_number
from opdf_compile.io.onnx_student.operator_table import Call, operator

_BRANCHES = ("then_branch", "else_branch")


@operator("If", either=(0,))
def if_(call: Call, condition: Operand) -> Any:
    """One of two graphs."""
    then, other = (call.node.subgraphs[name][0] for name in _BRANCHES)
    if isinstance(condition, Host):
        return tuple(call.enter(then if only_number(condition) else other, None))
    if not torch.compiler.is_exporting():
        return tuple(call.enter(then if bool(condition.reshape(())) else other, None))
    return _conditional(call, condition)


def _conditional(call: Call, condition: Tensor) -> tuple[Any, ...]:
    """Both branches in the traced graph, with all they read as operands.

    The operator is called directly: torch.cond would first compile the branches with Dynamo.
    """
    graphs = [call.node.subgraphs[name][0] for name in _BRANCHES]
    given: dict[Any, Operand] = {}
    for graph in graphs:
        given.update(call.outside(graph))
    operands = {place: value for place, value in given.items() if not _is_plain(value)}
    tensors = [as_tensor(value, call.device) for value in operands.values()]

    def branch(graph: Any) -> Any:
        def run(*inner: Tensor) -> tuple[Tensor, ...]:
            pairs = zip(operands.items(), inner, strict=True)
            inside = given | {place: _with(value, tensor) for (place, value), tensor in pairs}
            found = call.enter(graph, inside)
            # The operator refuses outputs that are its inputs.
            return tuple(as_tensor(value, call.device).clone() for value in found)

        return run

    chosen: tuple[Any, ...] = torch.ops.higher_order.cond(
        condition.reshape(()), branch(graphs[0]), branch(graphs[1]), tuple(tensors)
    )
    return chosen


def _is_plain(value: Operand) -> bool:
    return isinstance(value, Host) and value.read is None and not value.symbolic


def _with(value: Operand, tensor: Tensor) -> Operand:
    """The value inside a branch, which may read the tensor that was handed in and no other."""
    return Host(value.array, value.dtype, lambda: tensor) if isinstance(value, Host) else tensor
