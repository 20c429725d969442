"""An activation or a bias that the reference has and the candidate lost, told from other changes.

    candidate   reader( x )                 reference   reader( f( x' ) )

x and x' are values of one operator, f a small region of pointwise nodes between x' and the reader
that reads nothing but x' and constants. With an activation in it (a Relu, or a SiLU written as
Sigmoid and Mul) f is an activation; a lone Add of a constant is a bias. Then x stands for x', and
what lies behind it can be compared as if nothing had been lost.
"""

from __future__ import annotations

from dataclasses import dataclass

from opdf_compile.artefacts import Node, Value
from opdf_compile.parity.structure.canonical import called_operator

_ACTIVATIONS = (
    *("Celu", "Clip", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "Hardmax", "LeakyRelu"),
    *("LogSoftmax", "Mish", "PRelu", "Relu", "Selu", "Sigmoid", "Softmax", "Softplus", "Softsign"),
    *("Swish", "Tanh", "ThresholdedRelu"),
)
# What exporters write activations with, when the opset has no operator for one.
_POINTWISE = ("Add", "Cast", "Div", "Exp", "Identity", "Max", "Min", "Mul", "Pow", "Sqrt", "Sub")
# The input that is the bias.
_BIAS = {
    **dict.fromkeys(("Conv", "ConvTranspose", "Gemm", "LayerNormalization"), 2),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), 3),
}
# GELU by its tanh formula has 8 nodes, and a bias one.
_LARGEST = 12


@dataclass(frozen=True)
class Lost:
    """What was lost, and where the reference has what the candidate still has.

    Attributes:
        kind: "activation" or "bias".
        what: The lost nodes in words.
        value: The reference's value that the candidate's corresponds to.
    """

    kind: str
    what: str
    value: Value


def lost_between(c: Value, r: Value) -> Lost | None:
    """Find what the reference has between `r` and the value that `c` stands for, if it is that."""
    region: list[Node] = []
    waiting = [r]
    while len(region) <= _LARGEST:
        if region and len(waiting) == 1 and _alike(c, waiting[0]):
            return _named(region, waiting[0])
        # The last one of the file depends on none of the others, so x' is never taken for a part.
        node = max((v.node for v in waiting if v.node), key=_place, default=None)
        if node is None or node.domain or node.op not in _ACTIVATIONS + _POINTWISE:
            return None
        region.append(node)
        read = [*(v for v in waiting if v.node is not node), *node.inputs]
        waiting = list(dict.fromkeys(v for v in read if _varies(v)))
    return None


def lost_bias(c: Node, r: Node) -> str:
    """The bias that `r` adds and `c` does not, in words; empty where there is none."""
    place = _BIAS.get(r.op, 0)
    if r.domain or not place or _input(r, place) is None:
        return ""
    # Without a bias a Linear layer is a MatMul.
    alike = (c.op == r.op and _input(c, place) is None) or (c.op, r.op) == ("MatMul", "Gemm")
    return f"{_input(r, place)} of {r}" if alike and not c.domain else ""


def _input(node: Node, place: int) -> Value | None:
    found = node.inputs[place] if place < len(node.inputs) else None
    return None if found is None or found.is_absent else found


def _alike(c: Value, r: Value) -> bool:
    if c.index != r.index:
        return False
    if c.node and r.node:
        return called_operator(c.node) == called_operator(r.node)
    return c.input_of is not None and r.input_of is not None


def _varies(value: Value) -> bool:
    return value.node is not None or value.input_of is not None


def _place(node: Node) -> int:
    return node.graph.nodes.index(node)


def _named(region: list[Node], value: Value) -> Lost | None:
    words = " and ".join(str(node) for node in reversed(region))
    if any(node.op in _ACTIVATIONS for node in region):
        return Lost("activation", words, value)
    only = region[0]
    added = next((v for v in only.inputs if v.constant), None)
    if len(region) > 1 or only.op != "Add" or added is None:
        return None
    return Lost("bias", f"{added} of {words}", value)
