"""Runs a parsed graph node by node, on tensors, fake tensors or whatever torch is tracing with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from opdf_compile.errors import InputError
from opdf_compile.io.onnx_student.nodes import Constant, Graph, Node
from opdf_compile.io.onnx_student.operands import Host, Value, as_host, as_tensor
from opdf_compile.io.onnx_student.operator_table import Call, Operator, find

ReadConstant = Callable[[Constant], Value]
# A value around a graph by name, or a constant in it by scope and name.
Place = str | tuple[tuple[str, ...], str]


class Runner:
    """One forward of a graph.

    Args:
        read: Gives the value of a constant.
        device: Where tensors are made that no input gives a device to.
    """

    def __init__(self, read: ReadConstant, device: torch.device) -> None:
        self._read, self._device = read, device

    def run(self, graph: Graph, inputs: Mapping[str, Value]) -> list[Value]:
        """The outputs of a graph.

        Args:
            graph: The graph.
            inputs: Values of its inputs by name.
        """
        return _Frame(self._read, self._device, graph, dict(inputs), None, {}).outputs()


class _Frame:
    """A graph that is being run; a nested graph sees the values of the frames around it."""

    def __init__(
        self,
        read: ReadConstant,
        device: torch.device,
        graph: Graph,
        values: dict[str, Value],
        around: _Frame | None,
        replaced: Mapping[Place, Value],
    ) -> None:
        self._read, self._device, self._graph = read, device, graph
        self._values, self._around, self._replaced = values, around, replaced

    def outputs(self) -> list[Value]:
        for node, last in zip(self._graph.nodes, self._graph.last_use, strict=True):
            self._values.update(self._step(node))
            for name in last:
                self._values.pop(name, None)
        return [self.look_up(name) for name in self._graph.outputs]

    def look_up(self, name: str) -> Value:
        if name in self._values:
            return self._values[name]
        constant = self._graph.constants.get(name)
        if constant is not None:
            place = (constant.scope, name)
            return self._replaced[place] if place in self._replaced else self._read(constant)
        if name in self._replaced:
            return self._replaced[name]
        if self._around is None:
            raise InputError(
                f"the value {name!r} is read and nothing in the file makes it, wanted a graph "
                "that ONNX's checker accepts; export the model again"
            )
        return self._around.look_up(name)

    def _step(self, node: Node) -> dict[str, Value]:
        inputs = [self.look_up(name) if name else None for name in node.inputs]
        entry = find(node)
        call = Call(node, self._device_of(inputs), self._enter, self._outside)
        result = _run(entry, call, inputs)
        results = result if isinstance(result, tuple | list) else (result,)
        return {n: r for n, r in zip(node.outputs, results, strict=False) if n}

    def _enter(self, graph: Graph, replaced: Mapping[Place, Value] | None) -> list[Value]:
        """A nested graph; where torch traces it, everything it reads is handed in."""
        around = self if replaced is None else None
        outer = self._replaced if replaced is None else replaced
        return _Frame(self._read, self._device, graph, {}, around, outer).outputs()

    def _outside(self, graph: Graph) -> dict[Place, Value]:
        found: dict[Place, Value] = {name: self.look_up(name) for name in graph.reads()}
        waiting = [graph]
        while waiting:
            inner = waiting.pop()
            found.update({(c.scope, c.name): self._read(c) for c in inner.constants.values()})
            waiting.extend(g for node in inner.nodes for g in node.graphs.values())
        return found

    def _device_of(self, inputs: list[Value | None]) -> torch.device:
        return next((v.device for v in inputs if isinstance(v, Tensor)), self._device)


def _run(entry: Operator, call: Call, inputs: list[Value | None]) -> Any:
    present = [value for value in inputs if value is not None]
    if entry.on_host is not None and all(isinstance(value, Host) for value in present):
        result = entry.on_host(call, *inputs)
        if result is not NotImplemented:
            return result
    given = [_as_wanted(entry, place, value, call) for place, value in enumerate(inputs)]
    return entry.run(call, *given)


def _as_wanted(entry: Operator, place: int, value: Value | None, call: Call) -> Value | None:
    if value is None or place in entry.either:
        return value
    if place in entry.numbers:
        return as_host(value)
    return as_tensor(value, call.device)
