"""Runs a linked graph node by node, on tensors, fake tensors or whatever torch is tracing with."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from opdf_compile.artefacts import Constant, Graph, LinkedModel, Node, Value
from opdf_compile.errors import InputError
from opdf_compile.io.onnx_student.operands import Host, Operand, as_host, as_tensor
from opdf_compile.io.onnx_student.operator_table import Call, Operator, find

ReadConstant = Callable[[Constant], Operand]
Known = dict[Value, Operand]


class Interpreter:
    """One forward of a model.

    Args:
        model: The model.
        read: Gives the operand of a constant.
        device: Where tensors are made that no input gives a device to.
    """

    def __init__(self, model: LinkedModel, read: ReadConstant, device: torch.device) -> None:
        self._last_use, self._read, self._device = model.last_use, read, device

    def run(self, graph: Graph, known: Known) -> list[Operand]:
        """The outputs of a graph.

        Args:
            graph: The graph.
            known: What stands for its inputs and, if it is nested, for what it reads around it.
        """
        for node in graph.nodes:
            known.update(self._step(node, known))
            for value in self._last_use[node]:
                known.pop(value, None)
        return [self._look_up(value, known) for value in graph.outputs]

    def _look_up(self, value: Value, known: Known) -> Operand:
        if value in known:
            return known[value]
        if value.constant is not None:
            return self._read(value.constant)
        raise InputError(
            f"the value {value.name!r} is read and nothing in the file makes it before, wanted a "
            "graph that ONNX's checker accepts; export the model again"
        )

    def _step(self, node: Node, known: Known) -> Known:
        inputs = [None if v.is_absent else self._look_up(v, known) for v in node.inputs]
        entry = find(node)
        device = next((v.device for v in inputs if isinstance(v, Tensor)), self._device)
        call = Call(node, device, partial(self._enter, known), partial(self._outside, known))
        result = _run(entry, call, inputs)
        results = result if isinstance(result, tuple | list) else (result,)
        return {v: results[v.index] for v in node.outputs if v.index < len(results)}

    def _enter(self, known: Known, graph: Graph, inside: Known | None) -> list[Operand]:
        """A nested graph; where torch traces it, everything it reads is handed in."""
        return self.run(graph, dict(known if inside is None else inside))

    def _outside(self, known: Known, graph: Graph) -> Known:
        found = {value: self._look_up(value, known) for value in graph.captured()}
        for inner in graph.nested():
            constants = (value for value in inner.values.values() if value.constant)
            found.update({value: self._look_up(value, known) for value in constants})
        return found


def _run(entry: Operator, call: Call, inputs: list[Operand | None]) -> Any:
    present = [value for value in inputs if value is not None]
    if entry.on_host is not None and all(isinstance(value, Host) for value in present):
        result = entry.on_host(call, *inputs)
        if result is not NotImplemented:
            return result
    given = [_as_wanted(entry, place, value, call) for place, value in enumerate(inputs)]
    return entry.run(call, *given)


def _as_wanted(entry: Operator, place: int, value: Operand | None, call: Call) -> Operand | None:
    if value is None or place in entry.either:
        return value
    if place in entry.numbers:
        return as_host(value)
    return as_tensor(value, call.device)
