"""The grammar that sizes and guards share: how a text is parsed, walked and shown.

A text from a model file is parsed by Python's own parser and never evaluated here; sizes.py
and guards.py say which nodes of the syntax tree they accept.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable

LONGEST = 20_000
# Names that stand for themselves: symbols as older versions wrote them, infinities, booleans.
BARE = re.compile(r"(?:z?[suf]f?[0-9]{1,9}|oo|int_oo|nan|true|false)")

# The names that sympy.srepr prints for torch's size expressions: sympy's own classes, and those of
# torch/utils/_sympy/functions.py. All are pure functions of numbers.
ALGEBRA = frozenset(
    (
        # Symbols and numbers.
        *("Symbol", "Integer", "Float", "Rational", "ToFloat", "Identity"),
        # Arithmetic; the second line may make a number long, see growth.py.
        *("Add", "Mul", "Abs", "Max", "Min", "Mod", "PythonMod", "ModularIndexing", "RShift"),
        *("Pow", "PowByNatural", "FloatPow", "LShift"),
        *("FloorDiv", "CleanDiv", "CeilDiv", "FloatTrueDiv", "IntTrueDiv"),
        *("BitwiseFn_bitwise_and", "BitwiseFn_bitwise_or", "BitwiseFn_bitwise_xor"),
        # Roundings.
        *("floor", "ceiling", "Floor", "Ceiling", "CeilToInt", "FloorToInt"),
        *("TruncToFloat", "TruncToInt", "RoundToInt", "RoundDecimal"),
        # Comparisons, under sympy's long names and its short ones.
        *("Equality", "Unequality", "Eq", "Ne", "Lt", "Le", "Gt", "Ge"),
        *("StrictLessThan", "LessThan", "StrictGreaterThan", "GreaterThan"),
        # Choices and what they depend on.
        *("And", "Or", "Not", "Xor", "Piecewise", "ExprCondPair", "ITE", "Where", "Tuple"),
        "IsNonOverlappingAndDenseIndicator",
        # Functions; the opaque ones stay as they are written.
        *("sqrt", "log", "exp", "sin", "cos", "tan"),
        *(f"OpaqueUnaryFn_{name}" for name in ("sqrt", "cos", "sin", "exp", "log", "log2", "tanh")),
    )
)
_OPERATORS = (ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.expr_context)
_SHAPES = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, *_OPERATORS)


class NotPlain(ValueError):
    """A file holds something that is not on a whitelist; the message says what."""


def parse_expression(text: str) -> ast.AST:
    """The syntax tree of a short ASCII text.

    Raises:
        NotPlain: It is long, not ASCII, or no expression.
    """
    if not text.isascii():
        raise NotPlain("it is not plain ASCII")
    if len(text) > LONGEST:
        raise NotPlain(f"it is {len(text)} characters long; at most {LONGEST} are read")
    try:
        return ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise NotPlain(f"{short(text)} is no expression") from error


def walk(tree: ast.AST, leaf: Callable[[ast.AST], list[ast.AST]]) -> None:
    """Visit without recursion: a deeply nested text must not exhaust Python's stack.

    Args:
        tree: What `parse_expression` returned.
        leaf: Checks one name, number or call, and returns its parts that are still to be visited.
    """
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, _SHAPES):
            waiting.extend(ast.iter_child_nodes(node))
        else:
            waiting.extend(leaf(node))


def show(node: ast.AST) -> str:
    """A node as a person would write it, cut to the length of a line."""
    try:
        return short(ast.unparse(node))
    except (ValueError, RecursionError):
        return f"a {type(node).__name__}"


def short(text: str) -> str:
    """A text in quotes, cut to the length of a line."""
    return repr(text if len(text) <= 60 else text[:57] + "...")
