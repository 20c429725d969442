"""An activation or a bias that the reference has and the candidate lost, told from other changes.

    candidate   reader( x )                 reference   reader( f( x' ) )

x and x' are values of one operator, f a small region of pointwise nodes between x' and the reader
that reads nothing but x' and constants. With an activation in it (a Relu, or a SiLU written as
Sigmoid and Mul) f is an activation; a lone Add of a constant is a bias. Then x stands for x', and
what lies behind it can be compared as if nothing had been lost.

An activation that was exchanged for the operator of its producer looks alike:

    candidate   reader( Exp( Exp( z ) ) )   reference   reader( Tanh( Exp( z ) ) )

So what x and x' read must be alike too, but for what was lost there; and where x agrees with the
last node of f as well, further back than with x', it is the one that took its place.
"""

from __future__ import annotations

from collections.abc import Iterator
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
    found = (_named(region, value) for region, value in _regions(c, r) if _fits(c, value, r))
    return next(found, None)


def _regions(c: Value, r: Value) -> Iterator[tuple[tuple[Node, ...], Value]]:
    """The regions f that end in `r`, each with an x' of the operator of `c`; smallest first."""
    region: list[Node] = []
    waiting = [r]
    while len(region) <= _LARGEST:
        if region and len(waiting) == 1 and _alike(c, waiting[0]):
            yield tuple(region), waiting[0]
        # The last one of the file depends on none of the others, so x' is never taken for a part.
        node = max((v.node for v in waiting if v.node), key=_place, default=None)
        if node is None or node.domain or node.op not in _ACTIVATIONS + _POINTWISE:
            return
        region.append(node)
        read = [*(v for v in waiting if v.node is not node), *node.inputs]
        waiting = list(dict.fromkeys(v for v in read if _varies(v)))


def _fits(c: Value, value: Value, r: Value) -> bool:
    """Whether `c` is rather what `value` is than what took the place of `r`."""
    if c.node is None or value.node is None:
        return True
    read = zip(c.node.inputs, value.node.inputs, strict=False)
    return all(_explained(*pair) for pair in read) and _reach(c, value) >= _reach(c, r)


def _explained(c: Value, r: Value) -> bool:
    """Whether two values are alike, or the candidate lost something between them, too."""
    if _alike(c, r) or (c.node and r.node and lost_bias(c.node, r.node)):
        return True
    return any(_named(region, value) for region, value in _regions(c, r))


def _reach(c: Value, r: Value) -> int:
    """For how many steps all that two values depend on is alike, whatever they are themselves."""
    pairs = [(c, r)]
    for step in range(_LARGEST):
        nodes = [(a.node, b.node) for a, b in pairs if a.node and b.node]
        if not nodes:
            break
        read = [(a.inputs, b.inputs) for a, b in nodes]
        if any(len(a) != len(b) for a, b in read):
            return step
        pairs = list(dict.fromkeys(pair for a, b in read for pair in zip(a, b, strict=True)))
        if not all(_alike(a, b) for a, b in pairs):
            return step
    return _LARGEST


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
    if c.node and r.node:
        return c.index == r.index and called_operator(c.node) == called_operator(r.node)
    if _varies(c) or _varies(r):
        return c.index == r.index and c.input_of is not None and r.input_of is not None
    a, b = c.constant, r.constant
    return a is b or (a is not None and b is not None and (a.dtype, a.shape) == (b.dtype, b.shape))


def _varies(value: Value) -> bool:
    return value.node is not None or value.input_of is not None


def _place(node: Node) -> int:
    return node.graph.nodes.index(node)


def _named(region: tuple[Node, ...], value: Value) -> Lost | None:
    words = " and ".join(str(node) for node in reversed(region))
    if any(node.op in _ACTIVATIONS for node in region):
        return Lost("activation", words, value)
    only = region[0]
    added = next((v for v in only.inputs if v.constant), None)
    if len(region) > 1 or only.op != "Add" or added is None:
        return None
    return Lost("bias", f"{added} of {words}", value)
