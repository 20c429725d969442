"""The linked view of an ONNX model: what reads what, across nested graphs and functions."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from opdf_compile.artefacts.linking import link
from opdf_compile.artefacts.onnx_graph import LinkedModel, nodes_behind
from opdf_compile.errors import ArtefactError


def info(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [2])


def number(name: str) -> onnx.TensorProto:
    return numpy_helper.from_array(np.ones(2, np.float32), name)


def branch(name: str, operand: str) -> onnx.GraphProto:
    node = helper.make_node("Add", [operand, f"{name}.w"], [f"{name}.y"], f"{name}.add")
    return helper.make_graph([node], name, [], [info(f"{name}.y")], [number(f"{name}.w")])


def model(**changes: onnx.NodeProto) -> onnx.ModelProto:
    """y = Twice(Neg(x) + w if flag else x + w); a Constant node, and a node that nothing reads."""
    nodes = {
        "neg": helper.make_node("Neg", ["x"], ["n"], "neg"),
        "flag": helper.make_node(
            "Constant", [], ["flag"], value=numpy_helper.from_array(np.bool_(1))
        ),
        "if": helper.make_node(
            *("If", ["flag"], ["z"], "if"),
            then_branch=branch("then", "n"),
            else_branch=branch("else", "x"),
        ),
        "twice": helper.make_node("Twice", ["z"], ["y"], "twice", domain="own"),
        "dead": helper.make_node("Clip", ["x", "", "w"], ["d"], "dead"),
    }
    body = helper.make_node("Add", ["a", "a"], ["b"], "double")
    opset = helper.make_opsetid("", 18)
    graph = helper.make_graph(
        list((nodes | changes).values()), "main", [info("x"), info("w")], [info("y")], [number("w")]
    )
    function = helper.make_function("own", "Twice", ["a"], ["b"], [body], [opset])
    imports = [opset, helper.make_opsetid("own", 1)]
    return helper.make_model(graph, opset_imports=imports, functions=[function], ir_version=9)


def labels(linked: LinkedModel, *outputs: str) -> set[str]:
    return {node.label for node in nodes_behind(linked.main.values[name] for name in outputs)}


def test_names_become_objects() -> None:
    linked = link(model())
    neg, branching, twice, dead = linked.main.nodes
    assert branching.inputs[0] is linked.main.values["flag"] and branching.inputs[0].constant
    assert twice.function is linked.functions["own", "Twice", ""] and neg.function is None
    assert [value.is_absent for value in dead.inputs] == [False, True, False]
    assert neg.outputs[0].readers == [(branching.subgraphs["then_branch"][0].nodes[0], 0)]
    assert dead.outputs[0].readers == [] and linked.main.outputs[0].node is twice


def test_an_input_with_a_default_is_both() -> None:
    x, w = link(model()).main.inputs
    assert x.constant is None and w.constant is not None and (x.index, w.index) == (0, 1)
    old = model()
    old.ir_version = 3
    # There every initialiser is listed as an input, and no input has a default.
    assert [value.name for value in link(old).main.inputs] == ["x"]


def test_constants_come_outermost_first_with_an_address() -> None:
    found = [constant.address for constant in link(model()).main.constants()]
    assert found == [
        *(((), "w"), ((), "flag")),
        *((("z.else_branch",), "else.w"), (("z.then_branch",), "then.w")),
    ]


def test_a_nested_graph_reads_for_the_node_that_holds_it() -> None:
    linked = link(model())
    neg, branching, twice, dead = linked.main.nodes
    other, then = branching.inner  # As the file has them.
    value = linked.main.values
    assert then.captured() == [value["n"]] and other.captured() == [value["x"]]
    assert branching.reads() == [value["flag"], value["x"], value["n"]]
    last = linked.last_use
    assert last[neg] == () and set(last[branching]) == {value["flag"], value["n"]}
    assert last[twice] == (value["z"],) and value["x"] in last[dead]
    assert labels(linked, "y") == {"twice", "double", "if", "then.add", "else.add", "neg"}
    assert labels(linked, "d") == {"dead"}


def test_what_is_no_valid_onnx_is_refused() -> None:
    lost = helper.make_node("Neg", ["nowhere"], ["n"])
    with pytest.raises(ArtefactError, match="reads 'nowhere', which nothing produces"):
        link(model(neg=lost))
    twice = helper.make_node("Neg", ["x"], ["z"])
    with pytest.raises(ArtefactError, match="'main' defines 'z' twice"):
        link(model(dead=twice))
    # A function sees its own names alone.
    blind = model()
    blind.functions[0].node[0].input[0] = "x"
    with pytest.raises(ArtefactError, match="'Twice' reads 'x'"):
        link(blind)
