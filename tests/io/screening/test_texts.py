"""The whitelists of texts that torch turns into code: what passes, what is refused, and why."""

from __future__ import annotations

import json
import typing
from collections.abc import Callable
from typing import Any

import pytest
import sympy
import torch
from torch.utils._sympy.functions import FloorDiv, Max, Mod, PythonMod

from opdf_compile.io.screening.guards import check_guard
from opdf_compile.io.screening.operators import check_operator
from opdf_compile.io.screening.program import check_program, parse_json
from opdf_compile.io.screening.rules import RULES
from opdf_compile.io.screening.sizes import check_symbol_name, check_symbolic
from opdf_compile.io.screening.syntax import NotPlain
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


NOT_SYMBOLIC = [
    "__import__('os').system('x')",
    "eval('1')",
    "open('x', 'w')",
    "Add('__import__(1)')",
    "Symbol('s0').__class__",
    "Symbol('s0').func(1)",
    "Symbol('a b')",
    "Symbol(name='s0')",
    "Symbol('s0', integer=open)",
    "Symbol('s0', integer='x')",
    "Symbol('u9999999999')",
    "Float('__import__')",
    "Float(s0, s1)",
    "Lambda(s0, s0)",
    "lambda: 1",
    "[x for x in (1,)]",
    "(s := 1)",
    "f'{1}'",
    "'a'",
    "b'a'",
    "Max",
    "s0.x",
    "s0[0]",
    "s0 if s1 else s2",
    "await s0",
    "{1: 2}",
    "*s0",
    "Add(*s0)",
    "Add(**s0)",
    "2**2**2**2**9",
    "1 << 99999999",
    "Pow(Integer(10), Integer(10000))",
    "Pow(Pow(Integer(10), Integer(64)), Integer(64))",
    "Pow(Integer(10), Pow(Integer(10), Integer(9)))",
    "Pow(Integer(10), Mul(Integer(64), Integer(64), Integer(64), Integer(64)))",
    "Pow(Add(Pow(Integer(10), Integer(64)), Mul(Integer(0), Symbol('s0'))), Integer(64))",
    "Pow(Pow(Symbol('s0'), Integer(0)), Pow(Integer(10), Symbol('s0')))",
    "floor(exp(exp(exp(Integer(5)))))",
    "floor(exp(Integer(10000000000)))",
    "floor(Mul(log(Integer(3)), Integer(%s)))" % ("9" * 4000),
    "floor(Pow(Integer(2), Rational(1, %s)))" % ("9" * 4000),
    "Float('1.5', precision=100000000000)",
    "Float('1e9999')",
    "floor(1e999)",
    "Max({})".format(", ".join(f"Mul(Integer({i}), Symbol('s{i}'))" for i in range(100))),
    "Pow(Integer(2))",
    "\uff45val(1)",
    "",
    "1 +",
    "(" * 5000 + ")" * 5000,
    "-" * 15_000 + "1" + "+1" * 10_000,
    "s0\nimport os",
]


@pytest.mark.parametrize("text", NOT_SYMBOLIC)
def test_everything_else_is_no_size(text: str) -> None:
    with pytest.raises(NotPlain) as caught:
        check_symbolic(text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


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


NOT_GUARDS = [
    "__import__('os').system('x')",
    "L['x'].size().__class__",
    "L['x'].data_ptr()",
    "L['x'].size(dim=0)",
    "L['a\\'b'].size()[0] == 1",
    'L["a\\"b"].size()[0] == 1',
    "torch.load('x')",
    "torch.os.system('x')",
    "torch.hub",
    "math.__loader__",
    "exec('1')",
    "(lambda: 1)()",
    "'a' == 'b'",
    "Symbol('s0') == 1",
    "args[0].size()[0] == 1",
    "[].append(1)",
]


@pytest.mark.parametrize("text", NOT_GUARDS)
def test_everything_else_is_no_guard(text: str) -> None:
    with pytest.raises(NotPlain):
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


NOT_OPERATORS = [
    ("torch.os.system", "not the name of an operator"),
    ("torch.serialization.os.system", "not the name of an operator"),
    ("torch.load", "not the name of an operator"),
    ("torch.ops.load_library", "not the name of an operator"),
    ("torch.ops.aten.linear", "not the name of an operator"),
    ("torch.ops.aten.linear.overloads", "not registered"),
    ("torch.ops.aten.linear.__class__", "not registered"),
    ("torch.ops.load_library.a.b", "not registered"),
    ("torch.ops.nope.nope.default", "not registered in this process"),
    ("torch.ops.aten.from_file.default", "opens files"),
    ("torch.ops.aten.from_file.out", "opens files"),
    ("torch.ops.aten.save.default", "computes no tensor"),
    ("torch.ops.aten._print.default", "computes no tensor"),
    ("torch.ops.aten.warn.default", "computes no tensor"),
    ("torch.ops.aten.manual_seed.default", "computes no tensor"),
    ("torch.ops.prim.Print.default", "not arithmetic or control flow"),
    ("torch.ops.inductor._reinterpret_tensor.default", "not arithmetic or control flow"),
    ("torch.ops.higher_order.triton_kernel_wrapper_functional", "not arithmetic"),
    ("torch.ops.higher_order.call_torchbind", "not arithmetic"),
    ("torch.ops.higher_order.print", "not arithmetic"),
    ("_operator.call", "not the name of an operator"),
    ("_operator.methodcaller", "not the name of an operator"),
    ("math.__loader__.load_module", "not the name of an operator"),
    ("#extension:operator", "not the name of an operator"),
    ("builtins.eval", "not the name of an operator"),
    ("_operator.add\nimport os", "not the name of an operator"),
]


@pytest.mark.parametrize(("name", "words"), NOT_OPERATORS)
def test_everything_else_is_no_operator(name: str, words: str) -> None:
    with pytest.raises(NotPlain, match=words):
        check_operator(name)


def test_operators_of_others_must_not_take_texts() -> None:
    library = torch.library.Library("opdf_screening_test", "DEF")
    library.define("double(Tensor x, int n) -> Tensor")
    library.define("read(str where) -> Tensor")
    check_operator("torch.ops.opdf_screening_test.double.default")
    with pytest.raises(NotPlain, match="takes texts and is not one of torch's own"):
        check_operator("torch.ops.opdf_screening_test.read.default")


def node(kind: str | None, context: Any = "null", *children: Any) -> dict[str, Any]:
    return {"type": kind, "context": context, "children_spec": list(children)}


LEAF = node(None, None)


@pytest.mark.parametrize(
    "value",
    [(1, {"a": [2, None]}), [torch.ones(1), (2,)], {"b": {"c": 1}}, {1: 2}, ()],
)
def test_plain_trees_are_accepted(value: Any) -> None:
    _, spec = torch.utils._pytree.tree_flatten(value)
    check_treespec(torch.utils._pytree.treespec_dumps(spec))


TREES = [
    ("{", "no JSON"),
    ("[2, {}]", "unknown version"),
    ("[1, {}]", "malformed"),
    (json.dumps([1, {"type": 3, "context": None, "children_spec": []}]), "malformed"),
    (json.dumps([1, node("builtins.dict", 3)]), "malformed"),
    (json.dumps([1, node("builtins.dict", "{")]), "no JSON"),
    (json.dumps([1, node("builtins.dict", '{"a": 1}', LEAF)]), "no list"),
    (json.dumps([1, node("builtins.dict", '["a\\"b"]', LEAF)]), "could end a quotation"),
    (json.dumps([1, node("builtins.dict", '[{"__enum__": 1}]', LEAF)]), "neither text nor number"),
    (json.dumps([1, node("collections.defaultdict", {})]), "names a module to import"),
    (json.dumps([1, node("some.Unknown")]), "which this process does not know"),
]


@pytest.mark.parametrize(("text", "words"), TREES)
def test_other_trees_are_refused(text: str, words: str) -> None:
    with pytest.raises(NotPlain, match=words):
        check_treespec(text)


def test_trees_are_not_endless() -> None:
    tree: Any = LEAF
    for _ in range(100):
        tree = node("builtins.tuple", "null", tree)
    with pytest.raises(NotPlain, match="nested deeper"):
        check_treespec(json.dumps([1, tree]))


def test_types_with_readers_of_their_own_are_refused() -> None:
    class Wrapped:
        pass

    torch.utils._pytree._private_register_pytree_node(
        Wrapped,
        lambda _: ([], None),
        lambda *_: Wrapped(),
        serialized_type_name="opdf_test.Wrapped",
        to_dumpable_context=lambda _: "",
        from_dumpable_context=lambda _: None,
    )
    with pytest.raises(NotPlain, match="has a reader of its own"):
        check_treespec(json.dumps([1, node("opdf_test.Wrapped", "")]))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (({"a'b": 1}, {}), "could end a quotation"),
        ((), None),
        (((torch.ones(1), "plain", None, 3), {"x": [True, 1.5]}), None),
        ((object(),), "contain a object"),
        (({(1, 2): 3},), "could end a quotation"),
        ((torch.nn.Parameter(torch.ones(1)),), "contain a Parameter"),
    ],
)
def test_sample_inputs(value: Any, words: str | None) -> None:
    if words is None:
        check_sample(value)
        return
    with pytest.raises(NotPlain, match=words):
        check_sample(value)


def test_symbols_that_would_stall_the_loader() -> None:
    check_symbol_name("u12")
    for name in ("u99999999", "zuf99999999", "s 1", "s1)", ""):
        with pytest.raises(NotPlain):
            check_symbol_name(name)


def no_graph(_: Any) -> Any:
    return []


def two_alternatives(document: Any) -> Any:
    document["graph_module"]["graph"]["inputs"] = [{"as_int": 1, "as_bool": True}]
    return document


def unknown_alternative(document: Any) -> Any:
    document["graph_module"]["graph"]["inputs"] = [{"as_code": "1"}]
    return document


def list_for_mapping(document: Any) -> Any:
    document["graph_module"]["graph"]["tensor_values"] = []
    return document


def mapping_for_list(document: Any) -> Any:
    document["graph_module"]["graph"]["nodes"] = {}
    return document


def text_for_float(document: Any) -> Any:
    document["graph_module"]["graph"]["inputs"] = [{"as_float": "sys"}]
    return document


def code_without_a_rule(document: Any) -> Any:
    document["verifiers"] = ["TRAINING", "__import__('os')"]
    return document


def version_without_a_rule(document: Any) -> Any:
    document["torch_version"] = "2.13.0+cu130"
    return document


def unknown_field(document: Any) -> Any:
    document["something_new"] = "__import__('os')"
    return document


DOCUMENTS: list[tuple[Callable[[Any], Any], str | None]] = [
    (no_graph, "a list stands where a ExportedProgram belongs"),
    (two_alternatives, "exactly one alternative"),
    (unknown_alternative, "has no alternative 'as_code'"),
    (list_for_mapping, "a list stands where a mapping belongs"),
    (mapping_for_list, "a dict stands where a list belongs"),
    (text_for_float, "'sys' stands where a number belongs"),
    (unknown_field, None),
    (code_without_a_rule, "ExportedProgram.verifiers: the text .* could be code"),
    (version_without_a_rule, None),
]


@pytest.mark.parametrize(("change", "words"), DOCUMENTS)
def test_every_value_has_the_declared_type(change: Callable[[Any], Any], words: str | None) -> None:
    graph = {
        "inputs": [],
        "outputs": [],
        "nodes": [],
        "tensor_values": {},
        "sym_int_values": {},
        "sym_bool_values": {},
    }
    document = {
        "graph_module": {
            "graph": graph,
            "signature": {"input_specs": [], "output_specs": []},
            "module_call_graph": [],
        },
        "opset_version": {"aten": 10},
        "range_constraints": {},
        "schema_version": {"major": 8, "minor": 1},
    }
    check_program(document)
    changed = change(document)
    if words is None:
        check_program(changed)
        return
    with pytest.raises(NotPlain, match=words):
        check_program(changed)


def test_every_rule_is_about_a_field_that_torch_has() -> None:
    """A rule for a field that torch renamed would check nothing."""
    from torch._export.serde import schema

    for record, field in RULES:
        assert field in typing.get_type_hints(getattr(schema, record), globalns=vars(schema))


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[" * 100_000, b"1" * 10_000])
def test_json_that_is_none(data: bytes) -> None:
    with pytest.raises(NotPlain, match="no JSON"):
        parse_json(data)
