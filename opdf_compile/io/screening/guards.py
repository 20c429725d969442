"""Which texts in a model file may be guards: comparisons of the inputs' sizes and strides.

`program.module()` pastes guards (`ExportedProgram.guards_code`) into a function and `exec`s it
(torch/export/_unlift.py, `_convert_guards_code_to_fn`). They are dropped when a file is read, and
refused before that if they are anything but comparisons of the whitelist here.
"""

from __future__ import annotations

import ast
import re

from opdf_compile.io.screening.syntax import (
    ALGEBRA,
    BARE,
    NotPlain,
    parse_expression,
    short,
    show,
    walk,
)

_GUARD_METHODS = frozenset({"size", "stride", "storage_offset", "dim", "numel", "item"})
_GUARD_MODULES = frozenset({"math", "torch"})
_GUARD_ATTRIBUTES = frozenset(
    (
        *("ceil", "floor", "trunc", "sqrt", "log", "log2", "exp", "pow", "isnan", "inf", "nan"),
        *("sym_max", "sym_min", "sym_ite", "sym_not", "sym_float", "sym_int", "sym_sqrt"),
    )
)


def check_guard(text: str) -> None:
    """Accept comparisons of the inputs' sizes and strides; refuse everything else.

    Raises:
        NotPlain: Something else is in it.
    """
    walk(parse_expression(text), _leaf)


def _leaf(node: ast.AST) -> list[ast.AST]:
    """Check one part of a guard such as `L['x'].size()[0] % 2 == 0`."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float, bool, type(None)):
        return []
    if isinstance(node, ast.Name) and (node.id == "L" or BARE.fullmatch(node.id)):
        return []
    if isinstance(node, ast.Tuple | ast.List):
        return list(node.elts)
    if isinstance(node, ast.Subscript):
        return [node.value, *_subscript(node.slice)]
    if isinstance(node, ast.Attribute) and _module_attribute(node):
        return []
    if isinstance(node, ast.Call) and not node.keywords:
        return [*node.args, *_guard_callee(node)]
    raise NotPlain(f"{show(node)} is not allowed in a guard")


def _subscript(index: ast.AST) -> list[ast.AST]:
    if isinstance(index, ast.Constant) and isinstance(index.value, str):
        if not re.fullmatch(r"[\w.\-]+", index.value):
            raise NotPlain(f"the input name {short(index.value)} is no plain name")
        return []
    return [index]


def _guard_callee(node: ast.Call) -> list[ast.AST]:
    callee = node.func
    if isinstance(callee, ast.Attribute) and callee.attr in _GUARD_METHODS:
        return [callee.value]
    if isinstance(callee, ast.Attribute) and _module_attribute(callee):
        return []
    if isinstance(callee, ast.Name) and (callee.id in ALGEBRA - {"Symbol"}):
        return []
    raise NotPlain(f"{show(node)} is not allowed in a guard")


def _module_attribute(node: ast.Attribute) -> bool:
    return (
        isinstance(node.value, ast.Name)
        and node.value.id in _GUARD_MODULES
        and node.attr in _GUARD_ATTRIBUTES
    )
