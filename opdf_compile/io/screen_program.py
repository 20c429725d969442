"""Walk the JSON of an exported program with torch's own schema, and check every text in it.

torch fills its schema from the JSON without looking at types: a text may arrive where a number is
declared, and a text that becomes Python source (names of nodes, of inputs, of parameters) is pasted
as it is. torch.fx generates source from the graph and `exec`s it while the file loads, so a *name*
is a way to run code. Here every value must have exactly the declared type, and every text the form
that its place allows.

The sinks, and the rule that closes each (paths in torch 2.13):

| text | becomes | rule |
|---|---|---|
| SymExpr.expr_str | `sympy.sympify`, that is `eval` | whitelist of expressions |
| ExportedProgram.guards_code | `exec` in `.module()` | whitelist; dropped as well |
| Node.target, Argument.as_operator | attributes of `torch`, called | registered operators |
| names of tensors, graphs, arguments | source of `forward`, `exec`ed at load | identifiers |
| names of parameters and buffers | `getattr(self, "...")` in that source | no quotes |
| forward_arg_names, keys of keyword inputs | source of `forward` | identifiers |
| texts among the inputs | source of the guard function | no quotes |
| in_spec, out_spec | `importlib.import_module` (enum, defaultdict) | plain containers |
| CustomObjArgument | TorchScript objects, pickles | refused |
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import types
import typing
from collections.abc import Callable
from enum import Enum
from typing import Any

from opdf_compile.io.screen_expressions import (
    NotPlain,
    check_guard,
    check_symbol_name,
    check_symbolic,
)
from opdf_compile.io.screen_operators import check_operator
from opdf_compile.io.screen_trees import check_safe_text, check_treespec

Check = Callable[[Any], None]

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,1023}")
_PLAIN = re.compile(r"[^\"'\\`{}();\x00-\x1f\x7f-\x9f]{0,1024}")
_DOTTED = re.compile(r"[A-Za-z0-9_.:/@#$ \-]{0,1023}")


def check_program(document: object) -> None:
    """Check `models/NAME.json` of an archive.

    Raises:
        NotPlain: With the place and what was found there.
    """
    from torch._export.serde import schema

    _checker(schema.ExportedProgram)(document)


def check_payloads(document: object) -> dict[str, Any]:
    """Check a `*_weights_config.json` or `*_constants_config.json`; return its entries.

    Raises:
        NotPlain: With the place and what was found there.
    """
    from torch._export.serde import schema

    _checker(schema.PayloadConfig)(document)
    assert isinstance(document, dict)
    entries: dict[str, Any] = document.get("config", {})
    return entries


def _identifier(text: Any) -> None:
    if not _IDENTIFIER.fullmatch(text):
        raise NotPlain(f"{text[:60]!r} is not a plain name")


def _optional_identifier(text: Any) -> None:
    if text:
        _identifier(text)


def _dotted(text: Any) -> None:
    if not _DOTTED.fullmatch(text):
        raise NotPlain(f"{text[:60]!r} is not a plain name")


def _plain(text: Any) -> None:
    if not _PLAIN.fullmatch(text):
        raise NotPlain(f"the text {text[:60]!r} could be code")


def _each(check: Check) -> Check:
    def check_each(values: Any) -> None:
        for value in values or ():
            check(value)

    return check_each


def _input_texts(inputs: Any) -> None:
    """Texts among a graph's inputs end up between quotes in the guard function."""
    for value in inputs:
        if isinstance(value.get("as_string"), str):
            check_safe_text(value["as_string"])


def _in_spec(text: Any) -> None:
    check_treespec(text, keywords=True)


def _refuse_object(_: Any) -> None:
    raise NotPlain("a custom object was found, which only code can rebuild")


# What a text (or the keys of a mapping) must look like, by class and field of torch's schema.
_RULES: dict[tuple[str, str], Check] = {
    ("SymExpr", "expr_str"): check_symbolic,
    ("ExportedProgram", "guards_code"): _each(check_guard),
    ("ExportedProgram", "range_constraints"): _each(check_symbol_name),
    ("Node", "target"): check_operator,
    ("Argument", "as_operator"): check_operator,
    ("Argument", "as_custom_obj"): _refuse_object,
    ("InputSpec", "custom_obj"): _refuse_object,
    ("Graph", "custom_obj_values"): _each(_refuse_object),
    ("Graph", "inputs"): _input_texts,
    ("Graph", "tensor_values"): _each(_identifier),
    ("Graph", "sym_int_values"): _each(_identifier),
    ("Graph", "sym_float_values"): _each(_identifier),
    ("Graph", "sym_bool_values"): _each(_identifier),
    ("TensorArgument", "name"): _identifier,
    ("TokenArgument", "name"): _identifier,
    ("GraphArgument", "name"): _identifier,
    ("SymIntArgument", "as_name"): _identifier,
    ("SymFloatArgument", "as_name"): _identifier,
    ("SymBoolArgument", "as_name"): _identifier,
    ("Node", "name"): _optional_identifier,
    ("NamedArgument", "name"): _optional_identifier,
    ("InputToConstantInputSpec", "name"): _optional_identifier,
    ("GradientToUserInputSpec", "user_input_name"): _identifier,
    ("UserInputMutationSpec", "user_input_name"): _identifier,
    ("ConstantValue", "as_string"): check_safe_text,
    ("InputToParameterSpec", "parameter_name"): _dotted,
    ("InputToBufferSpec", "buffer_name"): _dotted,
    ("InputToTensorConstantSpec", "tensor_constant_name"): _dotted,
    ("BufferMutationSpec", "buffer_name"): _dotted,
    ("ParameterMutationSpec", "parameter_name"): _dotted,
    ("GradientToParameterSpec", "parameter_name"): _dotted,
    ("ModuleCallSignature", "forward_arg_names"): _each(_identifier),
    ("ModuleCallSignature", "in_spec"): _in_spec,
    ("ModuleCallSignature", "out_spec"): check_treespec,
    ("NamedTupleDef", "field_names"): _each(_identifier),
    ("PayloadConfig", "config"): _each(_dotted),
    ("PayloadMeta", "path_name"): _dotted,
}


# Texts that are operators' arguments, which torch quotes properly.
_FREE = frozenset({("Argument", "as_string"), ("Argument", "as_strings")})


def _rule(record: str, field: str, hint: Any) -> Check | None:
    """The rule for a field; texts that a newer torch may add must at least look harmless."""
    rule = _RULES.get((record, field))
    if rule is not None or (record, field) in _FREE:
        return rule
    parts = [p for p in typing.get_args(hint) if p is not type(None)]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (hint,) = parts
        parts = list(typing.get_args(hint))
    if hint is str:
        return _plain
    return _each(_plain) if parts == [str] else None


@functools.cache
def _checker(hint: Any) -> Check:
    """A function that accepts exactly the JSON values of one declared type."""
    hint = _resolve(hint)
    origin, parameters = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        (inner,) = (p for p in parameters if p is not type(None))
        return _optional(inner)
    if origin is list:
        return _list(parameters[0])
    if origin is dict:
        return _mapping(parameters[1])
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _number(int, hint.__name__)
    if _is_union(hint):
        return _one_of(hint)
    if dataclasses.is_dataclass(hint):
        return _record(hint)
    if hint is float:
        return _real
    if hint in (int, bool, str):
        return _number(hint, hint.__name__)
    raise NotPlain(f"this version of torch declares {hint!r}, which this screening does not know")


def _resolve(hint: Any) -> Any:
    from torch._export.serde import schema

    if isinstance(hint, typing.ForwardRef):
        hint = hint.__forward_arg__
    if isinstance(hint, str):
        hint = getattr(schema, hint)
    if typing.get_origin(hint) is typing.Annotated:
        return _resolve(typing.get_args(hint)[0])
    return hint


def _is_union(hint: Any) -> bool:
    from torch._export.serde.union import _Union

    return isinstance(hint, type) and issubclass(hint, _Union)


@functools.cache
def _fields(record: Any) -> dict[str, tuple[Any, Check | None]]:
    """The declared fields of a class, each with the rule for its text.

    The checkers themselves are looked up at use: the schema is recursive (a graph holds graphs).
    """
    from torch._export.serde import schema

    hints = typing.get_type_hints(record, globalns=vars(schema), include_extras=False)
    return {
        name: (hint, _rule(record.__name__, name, hint))
        for name, hint in hints.items()
        if not name.startswith("_") and typing.get_origin(hint) is not typing.ClassVar
    }


def _field(record: Any, name: str, hint: Any, rule: Check | None, value: Any) -> None:
    _checker(hint)(value)
    if rule is None or value is None:
        return
    try:
        rule(value)
    except NotPlain as problem:
        raise NotPlain(f"{record.__name__}.{name}: {problem}") from problem


def _record(record: Any) -> Check:
    def check(value: Any) -> None:
        if type(value) is not dict:
            raise NotPlain(f"a {type(value).__name__} stands where a {record.__name__} belongs")
        # Unknown fields are ignored, as torch ignores them.
        for name, (hint, rule) in _fields(record).items():
            if name in value:
                _field(record, name, hint, rule, value[name])

    return check


def _one_of(record: Any) -> Check:
    def check(value: Any) -> None:
        if type(value) is not dict or len(value) != 1:
            raise NotPlain(f"{record.__name__} needs exactly one alternative")
        (name,) = value
        if name not in _fields(record):
            raise NotPlain(f"{record.__name__} has no alternative {str(name)[:60]!r}")
        hint, rule = _fields(record)[name]
        _field(record, name, hint, rule, value[name])

    return check


def _optional(hint: Any) -> Check:
    def check(value: Any) -> None:
        if value is not None:
            _checker(hint)(value)

    return check


def _list(hint: Any) -> Check:
    def check(value: Any) -> None:
        if type(value) is not list:
            raise NotPlain(f"a {type(value).__name__} stands where a list belongs")
        inner = _checker(hint)
        for item in value:
            inner(item)

    return check


def _mapping(hint: Any) -> Check:
    def check(value: Any) -> None:
        if type(value) is not dict:
            raise NotPlain(f"a {type(value).__name__} stands where a mapping belongs")
        inner = _checker(hint)
        for item in value.values():
            inner(item)

    return check


def _number(kind: type, name: str) -> Check:
    def check(value: Any) -> None:
        if type(value) is not kind:
            raise NotPlain(f"a {type(value).__name__} stands where {name} belongs")

    return check


def _real(value: Any) -> None:
    # JSON knows no infinities: torch writes them as these texts.
    if type(value) not in (int, float) and value not in ("Infinity", "-Infinity", "NaN"):
        raise NotPlain(f"{str(value)[:60]!r} stands where a number belongs")


def parse_json(data: bytes) -> object:
    """Parse JSON from a file.

    Raises:
        NotPlain: Not JSON, or nested deeper than Python can hold.
    """
    try:
        return json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise NotPlain(f"it is no JSON ({type(error).__name__})") from error
