"""What each text in an exported program must look like, by class and field of torch's schema.

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

import re
import types
import typing
from collections.abc import Callable
from functools import partial
from typing import Any

from opdf_compile.io.screening.guards import check_guard
from opdf_compile.io.screening.operators import check_operator
from opdf_compile.io.screening.sizes import check_symbol_name, check_symbolic
from opdf_compile.io.screening.syntax import NotPlain
from opdf_compile.io.screening.trees import check_safe_text, check_treespec

Check = Callable[[Any], None]

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,1023}")
_PLAIN = re.compile(r"[^\"'\\`{}();\x00-\x1f\x7f-\x9f]{0,1024}")
_DOTTED = re.compile(r"[A-Za-z0-9_.:/@#$ \-]{0,1023}")


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


def _refuse_object(_: Any) -> None:
    raise NotPlain("a custom object was found, which only code can rebuild")


# By class and field of torch's schema; of a mapping, the keys are meant.
TEXT_RULES: dict[tuple[str, str], Check] = {
    ("SymExpr", "expr_str"): check_symbolic,
    ("ExportedProgram", "guards_code"): _each(check_guard),
    ("ExportedProgram", "range_constraints"): _each(check_symbol_name),
    ("Node", "target"): check_operator,
    ("Argument", "as_operator"): check_operator,
    ("Argument", "as_custom_obj"): _refuse_object,
    ("Argument", "as_string_to_argument"): _each(check_safe_text),
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
    ("ModuleCallSignature", "in_spec"): partial(check_treespec, keywords=True),
    ("ModuleCallSignature", "out_spec"): check_treespec,
    ("NamedTupleDef", "field_names"): _each(_identifier),
    ("PayloadConfig", "config"): _each(_dotted),
    ("PayloadMeta", "path_name"): _dotted,
}


# Texts that are operators' arguments, which torch quotes properly.
_FREE = frozenset({("Argument", "as_string"), ("Argument", "as_strings")})


def text_rule(record: str, field: str, hint: Any) -> Check | None:
    """The rule for a field; texts that a newer torch may add must at least look harmless."""
    rule = TEXT_RULES.get((record, field))
    if rule is not None or (record, field) in _FREE:
        return rule
    parts = [p for p in typing.get_args(hint) if p is not type(None)]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (hint,) = parts
        parts = list(typing.get_args(hint))
    if hint is str:
        return _plain
    return _each(_plain) if parts == [str] else None
