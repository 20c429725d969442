"""Which texts in a model file may become sizes: a whitelist over Python's syntax tree.

torch reads a symbolic size (`SymExpr.expr_str`, written by `sympy.srepr`) with `sympy.sympify`,
that is with Python's `eval` (torch/_export/serde/serialize.py, `_parse_sym_expr`). Anything that is
not on the lists here is refused, whatever it would do; what it may cost is bounded by
growth.py.
"""

from __future__ import annotations

import ast
import re

from opdf_compile.io.screening.growth import check_growth
from opdf_compile.io.screening.syntax import (
    ALGEBRA,
    BARE,
    NotPlain,
    parse_expression,
    short,
    show,
    walk,
)

# sympy computes a Float to as many digits as its `precision` says.
_LARGEST_OPTION = 1000
_SYMBOL = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_NUMBER = re.compile(r"[-+]?[0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]{1,4})?")
# torch counts up to the number in an unbacked symbol's name, so it must be small.
_UNBACKED = re.compile(r"z?uf?([0-9]+)")


def check_symbol_name(name: str) -> None:
    """Accept a size's name ("s77"); torch counts up to the number in "u12".

    Raises:
        NotPlain: Not an identifier, or a number large enough to stall the loader.
    """
    if not _SYMBOL.fullmatch(name):
        raise NotPlain(f"the symbol {short(name)} is no plain name")
    unbacked = _UNBACKED.fullmatch(name)
    if unbacked and len(unbacked[1]) > 6:
        raise NotPlain(f"the symbol {name} has an absurd number")


def check_symbolic(text: str) -> None:
    """Accept what sympy.srepr prints for a size; refuse any other call, name or attribute.

    Raises:
        NotPlain: Something else is in it, or it would take absurdly long to compute.
    """
    tree = parse_expression(text)
    walk(tree, _leaf)
    check_growth(tree)


def _leaf(node: ast.AST) -> list[ast.AST]:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
        return []
    if isinstance(node, ast.Name) and BARE.fullmatch(node.id):
        return []
    if isinstance(node, ast.Tuple):
        return list(node.elts)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return _call(node, node.func.id)
    raise NotPlain(f"{show(node)} is not allowed in a size")


def _call(node: ast.Call, name: str) -> list[ast.AST]:
    if name not in ALGEBRA:
        raise NotPlain(f"a call of {name} is not allowed in a size")
    for keyword in node.keywords:
        if not (keyword.arg and isinstance(keyword.value, ast.Constant)):
            raise NotPlain(f"{show(node)} has an option that is no constant")
        value = keyword.value.value
        if not isinstance(value, int) or value > _LARGEST_OPTION:
            raise NotPlain(f"{show(node)} has an option that is no number up to {_LARGEST_OPTION}")
    if name in ("Symbol", "Float"):
        # The only two whose arguments are strings; elsewhere sympy would evaluate the string.
        _check_text(node, name)
        return []
    return list(node.args)


def _check_text(node: ast.Call, name: str) -> None:
    if len(node.args) != 1 or not isinstance(node.args[0], ast.Constant):
        raise NotPlain(f"{show(node)} is not allowed in a size")
    value = node.args[0].value
    if name == "Symbol" and isinstance(value, str):
        check_symbol_name(value)
    elif name == "Float" and (
        type(value) in (int, float) or (isinstance(value, str) and _NUMBER.fullmatch(value))
    ):
        return
    else:
        raise NotPlain(f"{show(node)} is not allowed in a size")
