"""The operator table: ONNX's operators by domain and name, each with its torch code.

An entry is written once for all versions of an operator; where their meaning differs it looks at
`Node.version`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from opdf_compile.artefacts import Graph, LinkedModel, Node
from opdf_compile.errors import InputError
from opdf_compile.io.onnx_student import ops

# The oldest operator set whose operators are known; older ones broadcast in another way.
OLDEST_OPSET = 7


@dataclass(frozen=True)
class Call:
    """One run of a node.

    Attributes:
        node: The node.
        device: Where tensors are made that no input gives a device to.
        enter: Runs a nested graph: from it, and values that replace those around it, to outputs.
        outside: What a nested graph reads: values around it, and constants in it.
    """

    node: Node
    device: torch.device
    enter: Callable[[Graph, Any], list[Any]]
    outside: Callable[[Graph], dict[Any, Any]]

    @property
    def op(self) -> str:
        """The operator's name."""
        return self.node.op

    @property
    def version(self) -> int:
        """The operator set in force."""
        return self.node.version

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute, or its default."""
        return self.node.attributes.get(name, default)

    def refusal(self, found: str, remedy: str = "") -> InputError:
        """What a node has that no torch code here computes, as one sentence."""
        instead = remedy or "give the PyTorch model that the file was exported from"
        return InputError(f"the node {self.node} {found}; {instead}")


@dataclass(frozen=True)
class Operator:
    """How an operator is run.

    Attributes:
        run: From the call and the inputs to the output, or a tuple of outputs.
        numbers: Places of the inputs that are taken as numbers (a shape, axes).
        either: Places of the inputs that are taken as they come, tensor or numbers.
        on_host: The same operator on Hosts; NotImplemented sends it to `run`.
    """

    run: Callable[..., Any]
    numbers: frozenset[int] = frozenset()
    either: frozenset[int] = frozenset()
    on_host: Callable[..., Any] | None = None


_OPERATORS: dict[tuple[str, str], Operator] = {}
_ON_HOST: dict[str, Callable[..., Any]] = {}


def operator(
    *names: str, numbers: tuple[int, ...] = (), either: tuple[int, ...] = (), domain: str = ""
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enter a function into the table; see `Operator`."""

    def enter(function: Callable[..., Any]) -> Callable[..., Any]:
        entry = Operator(function, frozenset(numbers), frozenset(either))
        for name in names:
            _OPERATORS[domain, name] = entry
        return function

    return enter


def on_host(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enter what an operator does when all its inputs are Hosts."""

    def enter(function: Callable[..., Any]) -> Callable[..., Any]:
        _ON_HOST.update(dict.fromkeys(names, function))
        return function

    return enter


def find(node: Node) -> Operator:
    """The entry of a node's operator.

    Raises:
        InputError: There is none.
    """
    # The families import this module to enter themselves, so it cannot import them above.
    ops.enter_all()
    entry = _OPERATORS.get((node.domain, node.op))
    if entry is None:
        raise InputError(unknown(node))
    if node.domain or node.op not in _ON_HOST:
        return entry
    return Operator(entry.run, entry.numbers, entry.either, _ON_HOST[node.op])


def known() -> tuple[str, ...]:
    """Names of all operators of ONNX's own domain in the table."""
    ops.enter_all()
    return tuple(sorted(name for domain, name in _OPERATORS if not domain))


def unknown(node: Node) -> str:
    """The sentence about an operator that is not in the table."""
    domain = node.domain or "ai.onnx"
    return (
        f"the node {node.label!r} is a {node.op} of the domain {domain}, opset {node.version}, "
        "which has no torch form here; give the PyTorch model that the file was exported from, or "
        "export it again without this operator"
    )


def require_known_operators(model: LinkedModel) -> None:
    """Refuse a model with an unknown operator before anything runs.

    Raises:
        InputError: As `find`.
    """
    for node in model.nodes:
        find(node)
