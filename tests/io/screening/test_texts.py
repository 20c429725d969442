"""The whitelists of texts that torch turns into code: what passes; test_refused.py has the rest."""

from __future__ import annotations

import typing
from typing import Any

import pytest
import sympy
import torch
from refused_texts import document
from torch.utils._sympy.functions import FloorDiv, Max, Mod, PythonMod

from opdf_compile.io.screening.guards import check_guard
from opdf_compile.io.screening.operators import check_operator
from opdf_compile.io.screening.program_schema import check_program
from opdf_compile.io.screening.rules import TEXT_RULES
from opdf_compile.io.screening.sizes import check_symbol_name, check_symbolic
from opdf_compile.io.screening.trees import check_sample, check_treespec

S, T = (sympy.Symbol(name, positive=True, integer=True) for name in ("s77", "s31"))
EXPRESSIONS = [
    S,
    2 * S,
    S * T - 1,
    FloorDiv(S - 1, 2) + 1,
    PythonMod(S, 4),
    Mod(S, 4),
    Max(S, T),
    S**2,
    1 / S,
    sympy.Eq(S, 4),
    sympy.And(S > 2, T < 3),
    sympy.Not(sympy.Eq(S, T)),
    sympy.Float(1.5) * S,
    sympy.Rational(1, 3) * S,
    sympy.oo,
    -sympy.oo,
    sympy.true,
]


@pytest.mark.parametrize("expression", EXPRESSIONS, ids=str)
def test_what_torch_writes_is_accepted(expression: Any) -> None:
    check_symbolic(sympy.srepr(expression))


@pytest.mark.parametrize("text", ["s0 + 2*s1", "u0", "(s0 - 1)//2", "Max(1, s0)"])
def test_what_older_versions_wrote_is_accepted(text: str) -> None:
    check_symbolic(text)


GUARDS = [
    "L['x'].size()[0] >= 2",
    "L['args'][0].size()[1] == L['kw']['a'].stride()[0]",
    "((L['a'].size()[0]*L['b'].size()[1]) % L['c'].size()[0]) == 0",
    "not (L['x'].size()[0] % 4 != 0)",
    "Eq(L['x'].size()[0], 4)",
    "math.ceil(1.5) <= Max(1, L['x'].size()[0])",
    "torch.sym_max(1, L['flat_args'][0].size()[0]) > 1",
    "L['x'].storage_offset() == 0 and L['n'] is None",
]


@pytest.mark.parametrize("text", GUARDS)
def test_guards_of_sizes_are_accepted(text: str) -> None:
    check_guard(text)


OPERATORS = [
    "torch.ops.aten.linear.default",
    "torch.ops.aten.sym_size.int",
    "torch.ops.aten.gelu.default",
    "torch.ops.prims.convert_element_type.default",
    "torch.ops.higher_order.wrap_with_set_grad_enabled",
    "torch.ops.higher_order.cond",
    "torch.sym_max",
    "_operator.getitem",
    "_operator.floordiv",
    "math.trunc",
]


@pytest.mark.parametrize("name", OPERATORS)
def test_arithmetic_and_control_flow_are_accepted(name: str) -> None:
    check_operator(name)


@pytest.mark.parametrize(
    "value",
    [(1, {"a": [2, None]}), [torch.ones(1), (2,)], {"b": {"c": 1}}, {1: 2}, ()],
)
def test_plain_trees_are_accepted(value: Any) -> None:
    _, spec = torch.utils._pytree.tree_flatten(value)
    check_treespec(torch.utils._pytree.treespec_dumps(spec))


@pytest.mark.parametrize(
    "value", [(), ((torch.ones(1), "plain", None, 3), {"x": [True, 1.5]})], ids=["none", "some"]
)
def test_plain_sample_inputs_are_accepted(value: Any) -> None:
    check_sample(value)


def test_symbols_and_operators_of_others_are_accepted() -> None:
    check_symbol_name("u12")
    check_operator("torch.ops.opdf_screening_test.double.default")


@pytest.mark.parametrize(
    "changes",
    [{}, {"something_new": "a text; of a newer torch"}, {"torch_version": "2.13.0+cu130"}],
    ids=["as it is", "unknown field", "text that a rule lets pass"],
)
def test_programs_of_the_declared_types_are_accepted(changes: dict[str, Any]) -> None:
    check_program(document(**changes))


def test_every_rule_is_about_a_field_that_torch_has() -> None:
    """A rule for a field that torch renamed would check nothing."""
    from torch._export.serde import schema

    for record, field in TEXT_RULES:
        assert field in typing.get_type_hints(getattr(schema, record), globalns=vars(schema))
