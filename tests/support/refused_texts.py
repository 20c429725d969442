"""Texts of a model file that are on no whitelist, each harmless, and the words of its refusal.

A row is what is wrong, how it is checked, and a part of the sentence. Limits are lowered where the
natural one is large, so that no input here costs anything, whoever reads it.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch

from opdf_compile.io.screening import growth, syntax, trees
from opdf_compile.io.screening.guards import check_guard
from opdf_compile.io.screening.operators import check_operator
from opdf_compile.io.screening.program_schema import _checker, check_program, parse_json
from opdf_compile.io.screening.sizes import check_symbol_name, check_symbolic
from opdf_compile.io.screening.trees import check_safe_text, check_sample, check_treespec


@dataclass(frozen=True)
class Refused:
    """One input that a guard refuses.

    Attributes:
        check: Gives the input to the guard.
        words: A part of the sentence that must come.
        limits: Constants that are lowered meanwhile, or functions that stand in, as
            (module or class, name): value.
    """

    check: Callable[[], object]
    words: str
    limits: dict[tuple[Any, str], Any] = field(default_factory=dict)

    def sentence(
        self, error: type[Exception] | tuple[type[Exception], ...] = syntax.NotPlain
    ) -> str:
        """The refusal itself."""
        with pytest.MonkeyPatch.context() as patch:
            for (owner, name), value in self.limits.items():
                patch.setattr(owner, name, value)
            with pytest.raises(error) as caught:
                self.check()
        return str(caught.value)


def raising(error: type[Exception]) -> Callable[..., Any]:
    """A function that stands for one which gives up."""

    def give_up(*_: Any, **__: Any) -> Any:
        raise error("given up")

    return give_up


FEW_DIGITS = {(growth, "MOST_DIGITS"): 10, (growth, "MOST_DIGITS_IRRATIONAL"): 5}
FEW_COMPARED = {(growth, "MOST_COMPARED"): 3}
SHORT = {(syntax, "LONGEST"): 10}

_SIZES = {
    "an unknown function": ("double(s0)", "a call of double"),
    "an unknown name": ("height", "not allowed"),
    "a text": ("'a'", "not allowed"),
    "bytes": ("b'a'", "not allowed"),
    "a function that is not called": ("Max", "not allowed"),
    "a function with a text": ("Add('a')", "not allowed"),
    "a method": ("Symbol('s0').count(1)", "not allowed"),
    "an attribute": ("s0.x", "not allowed"),
    "a part": ("s0[0]", "not allowed"),
    "a choice": ("s0 if s1 else s2", "not allowed"),
    "a mapping": ("{1: 2}", "not allowed"),
    "a list": ("[x for x in (1,)]", "not allowed"),
    "a function of its own": ("lambda: 1", "not allowed"),
    "a name given": ("(s := 1)", "not allowed"),
    "a formatted text": ("f'{1}'", "not allowed"),
    "waiting": ("await s0", "not allowed|no expression"),
    "a starred part": ("*s0", "not allowed|no expression"),
    "starred arguments": ("Add(*s0)", "not allowed"),
    "named arguments": ("Add(**s0)", "an option that is no constant"),
    "a symbol of two words": ("Symbol('a b')", "is no plain name"),
    "a symbol by option": ("Symbol(name='s0')", "an option that is no number"),
    "an option by name": ("Symbol('s0', integer=yes)", "an option that is no constant"),
    "an option that is a text": ("Symbol('s0', integer='x')", "an option that is no number"),
    "an option above its limit": ("Float('1.5', precision=1001)", "no number up to 1000"),
    "a symbol that is counted up to": ("Symbol('u1000000')", "absurd number"),
    "a number that is a word": ("Float('one')", "not allowed"),
    "a number of two": ("Float(s0, s1)", "not allowed"),
    "a number with a long exponent": ("Float('1e99999')", "not allowed"),
    "a power of one": ("Pow(Integer(2))", "the power .* is not allowed"),
    "letters beyond ASCII": ("d\u00f6uble(1)", "not plain ASCII"),
    "nothing": ("", "is no expression"),
    "half an expression": ("1 +", "is no expression"),
    "two lines": ("s0\ns1", "is no expression"),
}
# Each is a small number; the limit is lowered below it.
_LARGE_SIZES = {
    "a power": "Pow(Integer(10), Integer(20))",
    "a power as an operator": "10**20",
    "a shift": "1 << 20",
    "a power of a power": "Pow(Pow(Integer(10), Integer(3)), Integer(3))",
    "a power of a product": "Pow(Integer(10), Mul(Integer(2), Integer(3), Integer(4)))",
    "a power that is multiplied by nothing": (
        "Pow(Add(Pow(Integer(10), Integer(3)), Mul(Integer(0), Symbol('s0'))), Integer(3))"
    ),
    "an exponential": "floor(exp(Integer(9)))",
    "a logarithm": "floor(Mul(log(Integer(3)), Integer(1234567)))",
    "a root": "floor(Pow(Integer(2), Rational(1, 1234567)))",
    "a float": "Float('1e12')",
    "an infinity": "floor(1e999)",
}
_POWERS_IN_POWERS = {
    "a tower": "2**2**2",
    "a power above": "Pow(Integer(2), Pow(Integer(2), Integer(2)))",
    "a power above that cancels": (
        "Pow(Pow(Symbol('s0'), Integer(0)), Pow(Integer(2), Symbol('s0')))"
    ),
    "exponentials in exponentials": "floor(exp(exp(Integer(1))))",
}
_GUARDS = {
    "an unknown function": "double(L['x'].size()[0]) == 2",
    "a function of Python": "len(L) == 1",
    "an attribute of a size": "L['x'].size().real",
    "another method": "L['x'].element_size() == 4",
    "a method with an option": "L['x'].size(dim=0) == 1",
    "another function of torch": "torch.ones(1) == 1",
    "another function of a function": "torch.nn.ReLU() == 1",
    "another name of torch": "torch.pi == 1",
    "another name of math": "math.tau == 1",
    "a function of its own": "(lambda: 1)() == 1",
    "texts": "'a' == 'b'",
    "a symbol": "Symbol('s0') == 1",
    "an input by another name": "args[0].size()[0] == 1",
    "a method of a list": "[1].count(1) == 1",
}
_OPERATORS = {
    "a module": ("torch.nn", "not the name of an operator"),
    "a function of torch": ("torch.nn.functional.relu", "not the name of an operator"),
    "a function of Python": ("builtins.len", "not the name of an operator"),
    "another operator of Python": ("_operator.concat", "not the name of an operator"),
    "another function of math": ("math.gcd", "not the name of an operator"),
    "an operator without its overload": ("torch.ops.aten.linear", "not the name of an operator"),
    "two lines": ("_operator.add\n_operator.mul", "not the name of an operator"),
    "an extension": ("#extension:operator", "not the name of an operator"),
    "an attribute of an operator": ("torch.ops.aten.linear.overloads", "not registered"),
    "an operator of nobody": ("torch.ops.nobody.double.default", "not registered"),
    "an operator that opens files": ("torch.ops.aten.from_file.default", "opens files"),
    "an operator that prints": ("torch.ops.aten._print.default", "computes no tensor"),
    "an operator that warns": ("torch.ops.aten.warn.default", "computes no tensor"),
    "an operator that seeds": ("torch.ops.aten.manual_seed.default", "computes no tensor"),
    "an operator of the interpreter": ("torch.ops.prim.Print.default", "not arithmetic"),
    "an operator of the compiler": (
        "torch.ops.inductor._reinterpret_tensor.default",
        "not arithmetic or control flow",
    ),
    "a kernel as text": (
        "torch.ops.higher_order.triton_kernel_wrapper_functional",
        "not arithmetic",
    ),
    "an object's method": ("torch.ops.higher_order.call_torchbind", "not arithmetic"),
    "a print": ("torch.ops.higher_order.print", "not arithmetic"),
}


def node(kind: Any, context: Any = "null", *children: Any) -> dict[str, Any]:
    return {"type": kind, "context": context, "children_spec": list(children)}


LEAF = node(None, None)


def tree(root: Any) -> str:
    return json.dumps([1, root])


def nested(depth: int) -> Any:
    found: Any = LEAF
    for _ in range(depth):
        found = node("builtins.tuple", "null", found)
    return found


def keywords(*names: Any) -> str:
    """A tree of (args, kwargs) with these keywords."""
    inner = node("builtins.dict", json.dumps(names), *[LEAF] * len(names))
    return tree(node("builtins.tuple", "null", node("builtins.tuple"), inner))


_TREES = {
    "half a tree": ("{", "is no JSON"),
    "another version": ("[2, {}]", "unknown version"),
    "a tree of nothing": ("[1, {}]", "malformed"),
    "a number as type": (tree(node(3, None)), "malformed"),
    "a number as context": (tree(node("builtins.dict", 3)), "malformed"),
    "half a context": (tree(node("builtins.dict", "{")), "is no JSON"),
    "keys that are a mapping": (tree(node("builtins.dict", '{"a": 1}', LEAF)), "are no list"),
    "a key with a quote": (tree(node("builtins.dict", '["a\\"b"]', LEAF)), "end a quotation"),
    "a key of a module": (
        tree(
            node(
                "builtins.dict",
                json.dumps([{"__enum__": True, "fqn": "http:HTTPStatus", "name": "OK"}]),
                LEAF,
            )
        ),
        "neither text nor number",
    ),
    "a default of a module": (
        tree(
            node(
                "collections.defaultdict",
                {"default_factory_module": "builtins", "default_factory_name": "list"},
            )
        ),
        "names a module to import",
    ),
    "a type of nobody": (tree(node("some.Unknown")), "which this process does not know"),
}
_SAMPLES = {
    "a text with a quote": (({"a'b": 1}, {}), "could end a quotation"),
    "an object": ((object(),), "contain a object"),
    "a key that is a tuple": (({(1, 2): 3},), "could end a quotation"),
    "a parameter": ((torch.nn.Parameter(torch.ones(1)),), "contain a Parameter"),
    "a sparse tensor": ((torch.eye(2).to_sparse(),), "no plain array of numbers"),
}


def document(**changes: Any) -> dict[str, Any]:
    """The smallest exported program as JSON, changed; `graph_` changes its graph."""
    graph = {
        **{"inputs": [], "outputs": [], "nodes": []},
        **{"tensor_values": {}, "sym_int_values": {}, "sym_bool_values": {}},
        **changes.pop("graph_", {}),
    }
    return {
        "graph_module": {
            "graph": graph,
            "signature": {"input_specs": [], "output_specs": []},
            "module_call_graph": [],
        },
        "opset_version": {"aten": 10},
        "range_constraints": {},
        "schema_version": {"major": 8, "minor": 1},
        **changes,
    }


def inputs(*values: Any) -> dict[str, Any]:
    return document(graph_={"inputs": list(values)})


_DOCUMENTS: dict[str, tuple[Any, str]] = {
    "a list": ([], "a list stands where a ExportedProgram belongs"),
    "two alternatives": (inputs({"as_int": 1, "as_bool": True}), "exactly one alternative"),
    "an unknown alternative": (inputs({"as_word": "a"}), "has no alternative 'as_word'"),
    "a text for a number": (inputs({"as_float": "one"}), "'one' stands where a number belongs"),
    "a text with a quote": (inputs({"as_string": "a'b"}), "could end a quotation"),
    "a custom object": (
        inputs({"as_custom_obj": {"name": "a", "class_fqn": "b"}}),
        "a custom object was found",
    ),
    "a list for a mapping": (
        document(graph_={"tensor_values": []}),
        "a list stands where a mapping belongs",
    ),
    "a mapping for a list": (document(graph_={"nodes": {}}), "a dict stands where a list belongs"),
    "a text for an integer": (
        document(range_constraints={"s77": {"min_val": "2", "max_val": None}}),
        "a str stands where int belongs",
    ),
    "a name of two words": (inputs({"as_tensor": {"name": "two words"}}), "is not a plain name"),
    "text without a rule": (
        document(verifiers=["TRAINING", "a text; with punctuation"]),
        "ExportedProgram.verifiers: the text .* could be code",
    ),
}


def registered() -> None:
    """Operators of a library of our own, as an extension registers them. Nothing calls them."""
    library = torch.library.Library("opdf_screening_test", "DEF")
    library.define("double(Tensor x, int n) -> Tensor")
    library.define("label(Tensor x, str words) -> Tensor")
    library.define("load(Tensor x, str file_name) -> Tensor")
    library.define("save(Tensor x) -> Tensor")
    _LIBRARIES.append(library)


# A library's operators live as long as it does.
_LIBRARIES: list[torch.library.Library] = []
registered()


class Wrapped:
    """A type with a reader of its own."""


torch.utils._pytree._private_register_pytree_node(
    Wrapped,
    lambda _: ([], None),
    lambda *_: Wrapped(),
    serialized_type_name="opdf_test.Wrapped",
    to_dumpable_context=lambda _: "",
    from_dumpable_context=lambda _: None,
)

SIZES = {
    **{n: Refused(partial(check_symbolic, t), words) for n, (t, words) in _SIZES.items()},
    **{
        f"{n} above the limit": Refused(partial(check_symbolic, t), "more than", FEW_DIGITS)
        for n, t in _LARGE_SIZES.items()
    },
    **{
        n: Refused(partial(check_symbolic, t), "the power .* is not allowed")
        for n, t in _POWERS_IN_POWERS.items()
    },
    "more parts than are compared": Refused(
        partial(check_symbolic, "Max(s0, s1, s2, s3)"), "it compares 4 parts", FEW_COMPARED
    ),
    "more characters than are read": Refused(
        partial(check_symbolic, "s0 + s1 + s2"), "it is 12 characters long", SHORT
    ),
    "more than Python's parser takes": Refused(
        partial(check_symbolic, "s0"),
        "is no expression",
        {(ast, "parse"): raising(RecursionError)},
    ),
    "more than Python can show": Refused(
        partial(check_symbolic, "s0.x"),
        "a Attribute is not allowed in a size",
        {(ast, "unparse"): raising(RecursionError)},
    ),
    "a symbol's name": Refused(partial(check_symbol_name, "s 1"), "is no plain name"),
    "a symbol without a name": Refused(partial(check_symbol_name, ""), "is no plain name"),
    "a symbol with a large number": Refused(partial(check_symbol_name, "zuf1000000"), "absurd"),
}
GUARDS = {
    **{n: Refused(partial(check_guard, t), "not allowed in a guard") for n, t in _GUARDS.items()},
    "an input's name with a quote": Refused(
        partial(check_guard, "L['a\\'b'].size()[0] == 1"), "is no plain name"
    ),
}
OPERATORS = {
    **{n: Refused(partial(check_operator, t), words) for n, (t, words) in _OPERATORS.items()},
    "another's operator with a text": Refused(
        partial(check_operator, "torch.ops.opdf_screening_test.label.default"),
        "takes texts and is not one of torch's own",
    ),
    "another's operator with a file": Refused(
        partial(check_operator, "torch.ops.opdf_screening_test.load.default"), "opens files"
    ),
    "another's operator that saves": Refused(
        partial(check_operator, "torch.ops.opdf_screening_test.save.default"), "opens files"
    ),
}
TREES = {
    **{n: Refused(partial(check_treespec, t), words) for n, (t, words) in _TREES.items()},
    "a tree above the limit": Refused(
        partial(check_treespec, tree(nested(4))), "deeper than 3", {(trees, "_DEEPEST"): 3}
    ),
    "a tree deeper than Python holds": Refused(
        partial(check_treespec, tree(LEAF)),
        "is no JSON",
        {(json, "loads"): raising(RecursionError)},
    ),
    "a type with a reader of its own": Refused(
        partial(check_treespec, tree(node("opdf_test.Wrapped", ""))), "has a reader of its own"
    ),
    "a keyword of two words": Refused(
        partial(check_treespec, keywords("x", "two words"), keywords=True),
        "the input name 'two words' is not a plain name",
    ),
    "a text with a quote": Refused(partial(check_safe_text, "a'b"), "could end a quotation"),
}
SAMPLES = {
    **{n: Refused(partial(check_sample, v), words) for n, (v, words) in _SAMPLES.items()},
    "more values than are read": Refused(
        partial(check_sample, ([1] * 9,)), "more than 5 values", {(trees, "MOST_VALUES"): 5}
    ),
    "values nested above the limit": Refused(
        partial(check_sample, ((((1,),),),)), "deeper than 3", {(trees, "_DEEPEST"): 3}
    ),
}
DOCUMENTS = {
    **{n: Refused(partial(check_program, v), words) for n, (v, words) in _DOCUMENTS.items()},
    "a type that a newer torch may declare": Refused(
        partial(_checker, complex), "which this screening does not know"
    ),
    **{
        f"JSON, {n}": Refused(partial(parse_json, data), "it is no JSON")
        for n, data in {"nothing": b"", "half": b"{", "other letters": b"\xff"}.items()
    },
    "JSON deeper than Python holds": Refused(
        partial(parse_json, b"[]"),
        "it is no JSON .RecursionError.",
        {(json, "loads"): raising(RecursionError)},
    ),
}
TEXTS: dict[str, Refused] = {
    f"{kind}: {name}": row
    for kind, table in (
        ("size", SIZES),
        ("guard", GUARDS),
        ("operator", OPERATORS),
        ("tree", TREES),
        ("sample", SAMPLES),
        ("program", DOCUMENTS),
    )
    for name, row in table.items()
}
