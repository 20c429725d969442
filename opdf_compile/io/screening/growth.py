"""How long a size may become: bounds that are computed from the text, before sympy computes it.

sympy evaluates numbers while a text is read, and a few powers of powers are a number that no memory
holds. So each node gets an upper bound on the decimal digits of its numerator and denominator,
symbols counted as one digit (they stay symbols, or cancel):

    number             its own digits
    power(b, e)        digits(b) * E        E = product of (1 + |c|) over the constants c in e
    exp(e)             E
    anything else      the sum over its parts

A symbol in an exponent changes nothing about its bound, because it may cancel: x**0 is 1.
"""

from __future__ import annotations

import ast
import math
from dataclasses import dataclass

from opdf_compile.io.screening.syntax import NotPlain, show

# Python itself prints no number of more than 4300 digits.
MOST_DIGITS = 4_000
# Irrational numbers are evaluated to as many digits as the numbers around them have, several times.
MOST_DIGITS_IRRATIONAL = 100
# sympy compares each argument of a Max or Min with each other one.
MOST_COMPARED = 24
_POWERS = frozenset({"Pow", "PowByNatural", "FloatPow", "LShift"})
_EXPONENTIALS = frozenset({"exp", "OpaqueUnaryFn_exp"})
_IRRATIONAL = frozenset({"sqrt", "log", "sin", "cos", "tan"})


@dataclass(frozen=True)
class _Bound:
    """What is known about a part: digits, log10 of the product of (1 + |c|), and what it holds."""

    digits: float = 0.0
    spread: float = 0.0
    power: bool = False
    irrational: bool = False


def check_growth(tree: ast.AST) -> None:
    """Refuse a size whose computation would take absurdly long.

    Raises:
        NotPlain: The number would be too long, or too many are compared.
    """
    bounds: dict[int, _Bound] = {}
    compared = 0
    # Parents come before their parts in ast.walk, so backwards every part is known.
    for node in reversed(list(ast.walk(tree))):
        bounds[id(node)] = _bound(node, bounds)
        if _name(node) in ("Max", "Min"):
            compared += len(node.args)  # type: ignore[attr-defined]
    whole = bounds[id(tree)]
    limit = MOST_DIGITS_IRRATIONAL if whole.irrational else MOST_DIGITS
    if whole.digits > limit:
        raise NotPlain(
            f"{show(tree)} is not allowed in a size: it could compute a number of more than "
            f"{limit} digits"
        )
    if compared > MOST_COMPARED:
        raise NotPlain(
            f"{show(tree)} is not allowed in a size: it compares {compared} parts, at most "
            f"{MOST_COMPARED} are"
        )


def _bound(node: ast.AST, bounds: dict[int, _Bound]) -> _Bound:
    if isinstance(node, ast.Constant):
        return _constant(node.value)
    if isinstance(node, ast.keyword):
        return _Bound()
    if _name(node) == "Symbol":
        return _Bound(digits=1.0)
    power = _power(node)
    if power is not None:
        return _raised(node, power[0], power[1], bounds)
    if _name(node) in _EXPONENTIALS:
        return _raised(node, None, node.args[0], bounds)  # type: ignore[attr-defined]
    parts = [bounds[id(part)] for part in ast.iter_child_nodes(node)]
    return _Bound(
        sum(part.digits for part in parts),
        sum(part.spread for part in parts),
        any(part.power for part in parts),
        any(part.irrational for part in parts) or _irrational(node),
    )


def _constant(value: object) -> _Bound:
    if isinstance(value, str):
        mantissa, _, exponent = value.lower().partition("e")
        power = exponent.lstrip("+-")
        digits = len(mantissa) + (int(power) if power.isdigit() else 0)
        return _Bound(digits, float(digits))
    if not isinstance(value, int | float) or isinstance(value, bool):
        return _Bound()
    if isinstance(value, float) and not math.isfinite(value):
        return _Bound(math.inf, math.inf)
    size = math.log10(1 + abs(value))
    # A float is a fraction whose denominator has up to 300 digits.
    return _Bound(max(1.0, size) if isinstance(value, int) else max(20.0, abs(size)), size)


def _raised(
    node: ast.AST, base: ast.AST | None, exponent: ast.AST, bounds: dict[int, _Bound]
) -> _Bound:
    below = bounds[id(base)] if base is not None else _Bound(digits=1.0)
    above = bounds[id(exponent)]
    if above.power:
        raise NotPlain(f"the power {show(node)} is not allowed in a size")
    times = 10.0 ** min(above.spread, 300.0)
    irrational = base is None or not _whole(exponent)
    return _Bound(
        max(1.0, below.digits) * times,
        below.spread * times,
        True,
        below.irrational or above.irrational or irrational,
    )


def _power(node: ast.AST) -> tuple[ast.AST, ast.AST] | None:
    """Base and exponent of a power or a shift."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow | ast.LShift):
        return node.left, node.right
    if isinstance(node, ast.Call) and _name(node) in _POWERS:
        if len(node.args) != 2:
            raise NotPlain(f"the power {show(node)} is not allowed in a size")
        return node.args[0], node.args[1]
    return None


def _whole(node: ast.AST) -> bool:
    """Whether an exponent is a whole number or made of symbols and whole numbers only."""
    return not any(
        _name(part) in ("Rational", "Float", "FloatTrueDiv", "IntTrueDiv", "Pow")
        or (isinstance(part, ast.Constant) and isinstance(part.value, float))
        or isinstance(part, ast.Div)
        for part in ast.walk(node)
    )


def _irrational(node: ast.AST) -> bool:
    name = _name(node)
    return name in _IRRATIONAL or name.startswith("OpaqueUnaryFn_")


def _name(node: ast.AST) -> str:
    """The name that a call calls; empty for anything else."""
    called = node.func if isinstance(node, ast.Call) else None
    return called.id if isinstance(called, ast.Name) else ""
