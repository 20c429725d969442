"""The operands of products, their axes labelled by what they do: out, in, batch (see `ops`).

einsum 'bsd,dhk->bshk'   x: b,s out  d in        W: d in  h,k out
tensordot(x, W, [2], [0])                        the same
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node

from opdf_compile.graph.ops import CHAINS, operand, product_places


def labelled_operands(node: Node) -> list[tuple[Node, str]]:
    """The operands of a product with a label for each axis; [] for ops that are no product."""
    if node.target is torch.ops.aten.einsum.default:
        return _einsum(node)
    if node.target is torch.ops.aten.tensordot.default:
        return _tensordot(node)
    if node.target in CHAINS:
        chain: Any = node.args[0]
        return [(given, "io" if place else "oi") for place, given in enumerate(chain)]
    given = [(operand(node, place), place) for place in product_places(node)]
    return [(n, place.labels(_axes(n))) for n, place in given if isinstance(n, Node)]


def _einsum(node: Node) -> list[tuple[Node, str]]:
    equation, operands = str(node.args[0]), node.args[1]
    assert isinstance(operands, list | tuple)
    terms, result = _terms(equation.replace(" ", ""), [_axes(o) for o in operands])
    found = []
    for index, (given, term) in enumerate(zip(operands, terms, strict=True)):
        others = {letter for place, t in enumerate(terms) if place != index for letter in t}
        labels = "".join(_label(letter, others, result) for letter in term)
        if isinstance(given, Node):
            found.append((given, labels))
    return found


def _label(letter: str, others: set[str], result: Sequence[str]) -> str:
    if letter in others:
        return "b" if letter in result else "i"
    # In this operand alone: kept it is an out axis; left out it is summed.
    return "o" if letter in result else "i"


def _terms(equation: str, axes: Sequence[int]) -> tuple[list[list[str]], list[str]]:
    """The letters of each operand and of the result.

    Axes under an ellipsis count from the right: they are aligned as in broadcasting.
    """
    left, arrow, right = equation.partition("->")
    widest = 0
    terms = []
    for term, number in zip(left.split(","), axes, strict=True):
        hidden = max(0, number - len(term.replace("...", "")))
        widest = max(widest, hidden if "..." in term else 0)
        terms.append(_letters(term, hidden))
    if arrow:
        return terms, _letters(right, widest)
    counted = [letter for term in terms for letter in term]
    return terms, [c for c in counted if counted.count(c) == 1 or c.startswith(".")]


def _letters(term: str, hidden: int) -> list[str]:
    before, dots, after = term.partition("...")
    if not dots:
        return list(before)
    return [*before, *(f".{place}" for place in range(hidden, 0, -1)), *after]


def _tensordot(node: Node) -> list[tuple[Node, str]]:
    found = []
    for place in (1, 0):
        given, summed = node.args[place], _dims(node, 2 + place)
        if isinstance(given, Node):
            axes = _axes(given)
            gone = {axis % max(axes, 1) for axis in summed}
            found.append((given, "".join("i" if axis in gone else "o" for axis in range(axes))))
    return found


def _dims(node: Node, index: int) -> Sequence[int]:
    given: Any = node.args[index] if len(node.args) > index else ()
    return given if isinstance(given, list | tuple) else ()


def _axes(node: Any) -> int:
    value = node.meta.get("val") if isinstance(node, Node) else None
    return len(value.shape) if isinstance(value, torch.Tensor) else 0
