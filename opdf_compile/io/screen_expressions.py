"""Which texts in a model file may become expressions: a whitelist over Python's syntax tree.

torch turns two kinds of text from a `.pt2` into running code:

- symbolic sizes (`SymExpr.expr_str`, written by `sympy.srepr`): `sympy.sympify` evaluates them with
  Python's `eval` (torch/_export/serde/serialize.py, `_parse_sym_expr`);
- guards (`ExportedProgram.guards_code`): `program.module()` pastes them into a function and `exec`s
  it (torch/export/_unlift.py, `_convert_guards_code_to_fn`).

Anything that is not on the lists below is refused, whatever it would do.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable

_LONGEST = 20_000
_LARGEST_POWER = 64
_SYMBOL = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_NUMBER = re.compile(r"[-+]?[0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]{1,4})?")
# torch counts up to the number in an unbacked symbol's name, so it must be small.
_UNBACKED = re.compile(r"z?uf?([0-9]+)")
_BARE = re.compile(r"(?:z?[suf]f?[0-9]{1,9}|oo|int_oo|nan|true|false)")

# The names that sympy.srepr prints for torch's size expressions: sympy's own classes, and those of
# torch/utils/_sympy/functions.py. All are pure functions of numbers.
_ALGEBRA = frozenset(
    [
        "Symbol",
        "Integer",
        "Float",
        "Rational",
        "Add",
        "Mul",
        "Pow",
        "Max",
        "Min",
        "Abs",
        "Mod",
        "floor",
        "ceiling",
        "Floor",
        "Ceiling",
        "Equality",
        "Unequality",
        "Eq",
        "Ne",
        "Lt",
        "Le",
        "Gt",
        "Ge",
        "StrictLessThan",
        "LessThan",
        "StrictGreaterThan",
        "GreaterThan",
        "And",
        "Or",
        "Not",
        "Xor",
        "Piecewise",
        "ExprCondPair",
        "ITE",
        "Tuple",
        "sqrt",
        "log",
        "exp",
        "sin",
        "cos",
        "tan",
        "FloorDiv",
        "ModularIndexing",
        "Where",
        "PythonMod",
        "CleanDiv",
        "CeilToInt",
        "FloorToInt",
        "CeilDiv",
        "LShift",
        "RShift",
        "PowByNatural",
        "FloatPow",
        "FloatTrueDiv",
        "IntTrueDiv",
        "IsNonOverlappingAndDenseIndicator",
        "TruncToFloat",
        "TruncToInt",
        "RoundToInt",
        "RoundDecimal",
        "ToFloat",
        "Identity",
        "BitwiseFn_bitwise_and",
        "BitwiseFn_bitwise_or",
        "BitwiseFn_bitwise_xor",
        "OpaqueUnaryFn_sqrt",
        "OpaqueUnaryFn_cos",
        "OpaqueUnaryFn_sin",
        "OpaqueUnaryFn_exp",
        "OpaqueUnaryFn_log",
        "OpaqueUnaryFn_log2",
        "OpaqueUnaryFn_tanh",
    ]
)
_POWERS = frozenset({"Pow", "PowByNatural", "FloatPow", "LShift"})
_GUARD_METHODS = frozenset({"size", "stride", "storage_offset", "dim", "numel", "item"})
_GUARD_MODULES = frozenset({"math", "torch"})
_GUARD_ATTRIBUTES = frozenset(
    [
        "ceil",
        "floor",
        "trunc",
        "sqrt",
        "log",
        "log2",
        "exp",
        "isnan",
        "inf",
        "nan",
        "pow",
        "sym_max",
        "sym_min",
        "sym_ite",
        "sym_not",
        "sym_float",
        "sym_int",
        "sym_sqrt",
    ]
)
_OPERATORS = (ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.expr_context)
_SHAPES = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, *_OPERATORS)


class NotPlain(ValueError):
    """A text holds something that is not on the whitelist; the message says what."""


def check_symbol_name(name: str) -> None:
    """Accept a size's name ("s77"); torch counts up to the number in "u12".

    Raises:
        NotPlain: Not an identifier, or a number large enough to stall the loader.
    """
    if not _SYMBOL.fullmatch(name):
        raise NotPlain(f"the symbol {_short(name)} is no plain name")
    unbacked = _UNBACKED.fullmatch(name)
    if unbacked and len(unbacked[1]) > 6:
        raise NotPlain(f"the symbol {name} has an absurd number")


def check_symbolic(text: str) -> None:
    """Accept what sympy.srepr prints for a size; refuse any other call, name or attribute.

    Raises:
        NotPlain: Something else is in it.
    """
    tree = _parse(text)
    _walk(tree, _symbolic_leaf)
    _check_powers(tree)


def check_guard(text: str) -> None:
    """Accept comparisons of the inputs' sizes and strides; refuse everything else.

    Raises:
        NotPlain: Something else is in it.
    """
    _walk(_parse(text), _guard_leaf)


def _parse(text: str) -> ast.AST:
    if not text.isascii():
        raise NotPlain("it is not plain ASCII")
    if len(text) > _LONGEST:
        raise NotPlain(f"it is {len(text)} characters long; at most {_LONGEST} are read")
    try:
        return ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise NotPlain(f"{_short(text)} is no expression") from error


def _walk(tree: ast.AST, leaf: Callable[[ast.AST], list[ast.AST]]) -> None:
    """Visit without recursion: a deeply nested text must not exhaust Python's stack."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, _SHAPES):
            waiting.extend(ast.iter_child_nodes(node))
        else:
            waiting.extend(leaf(node))


def _symbolic_leaf(node: ast.AST) -> list[ast.AST]:
    """Check one name, number or call; return the parts that are still to be visited."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
        return []
    if isinstance(node, ast.Name) and _BARE.fullmatch(node.id):
        return []
    if isinstance(node, ast.Tuple):
        return list(node.elts)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return _algebra_call(node, node.func.id)
    raise NotPlain(f"{_show(node)} is not allowed in a size")


def _algebra_call(node: ast.Call, name: str) -> list[ast.AST]:
    if name not in _ALGEBRA:
        raise NotPlain(f"a call of {name} is not allowed in a size")
    for keyword in node.keywords:
        if not (keyword.arg and isinstance(keyword.value, ast.Constant)):
            raise NotPlain(f"{_show(node)} has an option that is no constant")
        if type(keyword.value.value) not in (bool, int):
            raise NotPlain(f"{_show(node)} has an option that is no number")
    if name in ("Symbol", "Float"):
        # The only two whose arguments are strings; elsewhere sympy would evaluate the string.
        _check_text_argument(node, name)
        return []
    return list(node.args)


def _check_text_argument(node: ast.Call, name: str) -> None:
    if len(node.args) != 1 or not isinstance(node.args[0], ast.Constant):
        raise NotPlain(f"{_show(node)} is not allowed in a size")
    value = node.args[0].value
    if name == "Symbol" and isinstance(value, str):
        check_symbol_name(value)
    elif name == "Float" and (
        type(value) in (int, float) or (isinstance(value, str) and _NUMBER.fullmatch(value))
    ):
        return
    else:
        raise NotPlain(f"{_show(node)} is not allowed in a size")


def _check_powers(tree: ast.AST) -> None:
    """Refuse powers that would compute a number of absurd length while the file loads."""
    for node in ast.walk(tree):
        parts = _power(node)
        if parts is None:
            continue
        base, exponent = parts
        if _largest(exponent) > _LARGEST_POWER or _holds_power(exponent):
            raise NotPlain(f"the power {_show(node)} is not allowed in a size")
        if _holds_power(base) and not _holds_symbol(base):
            raise NotPlain(f"the power {_show(node)} is not allowed in a size")


def _power(node: ast.AST) -> tuple[ast.AST, ast.AST] | None:
    """Base and exponent of a power or a shift."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow | ast.LShift):
        return node.left, node.right
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _POWERS:
        if len(node.args) != 2:
            raise NotPlain(f"the power {_show(node)} is not allowed in a size")
        return node.args[0], node.args[1]
    return None


def _holds_power(tree: ast.AST) -> bool:
    return any(_power(node) is not None for node in ast.walk(tree))


def _holds_symbol(tree: ast.AST) -> bool:
    return any(isinstance(node, ast.Name) and node.id == "Symbol" for node in ast.walk(tree))


def _largest(tree: ast.AST) -> float:
    """The largest number in an exponent; a symbol alone counts as nothing."""
    numbers = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    return max((abs(n) for n in numbers if isinstance(n, int | float)), default=0.0)


def _guard_leaf(node: ast.AST) -> list[ast.AST]:
    """Check one part of a guard such as `L['x'].size()[0] % 2 == 0`."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float, bool, type(None)):
        return []
    if isinstance(node, ast.Name) and (node.id == "L" or _BARE.fullmatch(node.id)):
        return []
    if isinstance(node, ast.Tuple | ast.List):
        return list(node.elts)
    if isinstance(node, ast.Subscript):
        return [node.value, *_subscript(node.slice)]
    if isinstance(node, ast.Attribute) and _module_attribute(node):
        return []
    if isinstance(node, ast.Call) and not node.keywords:
        return [*node.args, *_guard_callee(node)]
    raise NotPlain(f"{_show(node)} is not allowed in a guard")


def _subscript(index: ast.AST) -> list[ast.AST]:
    if isinstance(index, ast.Constant) and isinstance(index.value, str):
        if not re.fullmatch(r"[\w.\-]+", index.value):
            raise NotPlain(f"the input name {_short(index.value)} is no plain name")
        return []
    return [index]


def _guard_callee(node: ast.Call) -> list[ast.AST]:
    callee = node.func
    if isinstance(callee, ast.Attribute) and callee.attr in _GUARD_METHODS:
        return [callee.value]
    if isinstance(callee, ast.Attribute) and _module_attribute(callee):
        return []
    if isinstance(callee, ast.Name) and (callee.id in _ALGEBRA - {"Symbol"}):
        return []
    raise NotPlain(f"{_show(node)} is not allowed in a guard")


def _module_attribute(node: ast.Attribute) -> bool:
    return (
        isinstance(node.value, ast.Name)
        and node.value.id in _GUARD_MODULES
        and node.attr in _GUARD_ATTRIBUTES
    )


def _show(node: ast.AST) -> str:
    try:
        return _short(ast.unparse(node))
    except (ValueError, RecursionError):
        return f"a {type(node).__name__}"


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
