"""An activation or a bias that a candidate lost is named, and is the only difference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from opdf_compile.parity import compare
from opdf_compile.parity.structure.differences import Difference

node = helper.make_node


def model(nodes: list[NodeProto], output: str = "y") -> ModelProto:
    """A net of 4 features whose initialisers are made as its nodes name them."""
    sizes = {
        "w": (4, 4),
        "v": (4, 4),
        "k": (4, 4, 3),
        "b": (4,),
        "half": (),
        "one": (),
        "three": (),
    }
    scalars = {"half": 0.5, "one": 1.0, "three": 3.0}
    used = {name for each in nodes for name in each.input}
    rng = np.random.default_rng(0)
    initialisers = [
        numpy_helper.from_array(
            np.asarray(scalars.get(name, rng.normal(size=shape)), np.float32), name
        )
        for name, shape in sizes.items()
        if name in used
    ]
    made = {each.input[1] for each in nodes if each.op_type == "Conv"}
    shape = ["n", 4, "l"] if made else ["n", 4]
    infos = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", output)
    ]
    graph = helper.make_graph(nodes, "net", infos[:1], infos[1:], initialisers)
    built = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(built)
    return built


def differences(
    candidate: list[NodeProto], reference: list[NodeProto], folder: Path
) -> tuple[Difference, ...]:
    paths = [folder / "c.onnx", folder / "r.onnx"]
    for path, nodes in zip(paths, (candidate, reference), strict=True):
        onnx.save(model(nodes), path)
    found = compare(*paths).differences
    assert (
        not compare(paths[0], paths[0]).differences and not compare(paths[1], paths[1]).differences
    )
    return found


def first(made: str) -> NodeProto:
    return node("Gemm", ["x", "w", "b"], [made], "first")


def last(read: str) -> NodeProto:
    return node("Gemm", [read, "v", "b"], ["y"], "last")


def gelu(x: str, y: str) -> list[NodeProto]:
    return [
        node("Mul", [x, "half"], ["scaled"], "scale"),
        node("Erf", ["scaled"], ["e"], "erf"),
        node("Add", ["e", "one"], ["e1"], "shift"),
        node("Mul", [x, "e1"], ["xe"], "gate"),
        node("Mul", ["xe", "half"], [y], "halve"),
    ]


ACTIVATIONS: dict[str, tuple[list[NodeProto], str]] = {
    "Relu": ([node("Relu", ["a"], ["z"], "act")], "Relu 'act'"),
    "Softmax": ([node("Softmax", ["a"], ["z"], "act", axis=1)], "Softmax 'act'"),
    "ReLU6": ([node("Clip", ["a", "", "three"], ["z"], "act")], "Clip 'act'"),
    "SiLU as two nodes": (
        [node("Sigmoid", ["a"], ["s"], "sig"), node("Mul", ["a", "s"], ["z"], "mul")],
        "Sigmoid 'sig' and Mul 'mul'",
    ),
    "GELU as five nodes": (gelu("a", "z"), "Erf 'erf'"),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_lost_activation_is_named_and_is_the_only_difference(name: str, tmp_path: Path) -> None:
    nodes, words = ACTIVATIONS[name]
    found = differences([first("a"), last("a")], [first("a"), *nodes, last("z")], tmp_path)
    assert [d.kind for d in found] == ["activation"]
    sentence = found[0].sentence
    assert sentence.startswith("an activation was lost, ") and words in sentence
    assert (
        "behind Gemm 'first'" in sentence and "input 0 of Gemm 'last' is Gemm 'first'" in sentence
    )


@pytest.mark.parametrize(
    ("candidate", "reference"),
    [
        ([first("y")], [first("a"), node("Relu", ["a"], ["y"], "act")]),
        ([last("x")], [node("Relu", ["x"], ["z"], "act"), last("z")]),
    ],
    ids=["at the output", "at the input"],
)
def test_a_lost_activation_at_an_end(
    candidate: list[NodeProto], reference: list[NodeProto], tmp_path: Path
) -> None:
    found = differences(candidate, reference, tmp_path)
    assert [d.kind for d in found] == ["activation"] and "Relu 'act'" in found[0].sentence


def test_a_lost_activation_that_several_nodes_read_is_told_once(tmp_path: Path) -> None:
    def tail(read: str) -> list[NodeProto]:
        return [
            node("Gemm", [read, "v", "b"], ["p"], "left"),
            node("Gemm", [read, "w", "b"], ["q"], "right"),
            node("Sub", ["p", "q"], ["y"], "sub"),
        ]

    relu = node("Relu", ["a"], ["z"], "act")
    found = differences([first("a"), *tail("a")], [first("a"), relu, *tail("z")], tmp_path)
    assert [d.kind for d in found] == ["activation"]


def test_what_lies_behind_a_lost_activation_is_compared(tmp_path: Path) -> None:
    plain = node("Gemm", ["x", "w", "b"], ["a"], "first", transB=1)
    relu = node("Relu", ["a"], ["z"], "act")
    found = differences([first("a"), last("a")], [plain, relu, last("z")], tmp_path)
    assert [d.kind for d in found] == ["activation", "attribute"]


def test_a_lost_activation_behind_like_operators(tmp_path: Path) -> None:
    """What is left agrees with the reference further back than if its last node were exchanged."""
    left = [first("a"), node("Exp", ["a"], ["e"], "one"), node("Exp", ["e"], ["f"], "two")]
    relu = node("Relu", ["f"], ["z"], "act")
    found = differences([*left, last("f")], [*left, relu, last("z")], tmp_path)
    assert [d.kind for d in found] == ["activation"] and "Relu 'act'" in found[0].sentence


def test_two_lost_activations_are_both_named(tmp_path: Path) -> None:
    """What the value left over reads has lost one, too."""
    between, end = node("Relu", ["a"], ["z"], "inner"), node("Relu", ["p"], ["y"], "outer")
    product = node("Gemm", ["z", "v", "b"], ["p"], "last")
    found = differences([first("a"), last("a")], [first("a"), between, product, end], tmp_path)
    assert [d.kind for d in found] == ["activation", "activation"]
    assert "Relu 'outer'" in found[0].sentence and "Relu 'inner'" in found[1].sentence


def test_an_activation_and_a_bias_before_it_are_both_named(tmp_path: Path) -> None:
    product = node("Gemm", ["x", "w"], ["a"], "first")
    relu = node("Relu", ["z"], ["y"], "act")
    middle = node("Gemm", ["a", "v", "b"], ["z"], "last")
    found = differences([product, last("a")], [first("a"), middle, relu], tmp_path)
    assert [d.kind for d in found if "lost" in d.sentence] == ["activation", "bias"]


def conv(*inputs: str) -> NodeProto:
    return node("Conv", inputs, ["y"], "conv", pads=[1, 1])


BIASES: dict[str, tuple[list[NodeProto], list[NodeProto], str]] = {
    "Conv": ([conv("x", "k")], [conv("x", "k", "b")], "parameter 'b' float32[4] of Conv 'conv'"),
    "Gemm": (
        [node("Gemm", ["x", "v"], ["y"], "last")],
        [last("x")],
        "parameter 'b' float32[4] of Gemm 'last'",
    ),
    "Gemm became MatMul": (
        [node("MatMul", ["x", "v"], ["y"], "last")],
        [last("x")],
        "parameter 'b' float32[4] of Gemm 'last'",
    ),
    "MatMul and Add": (
        [node("MatMul", ["x", "v"], ["y"], "product")],
        [node("MatMul", ["x", "v"], ["p"], "product"), node("Add", ["p", "b"], ["y"], "add")],
        "parameter 'b' float32[4] of Add 'add'",
    ),
}


@pytest.mark.parametrize("name", BIASES)
def test_a_lost_bias_is_named(name: str, tmp_path: Path) -> None:
    candidate, reference, words = BIASES[name]
    found = differences(candidate, reference, tmp_path)
    biases = [d for d in found if d.kind == "bias"]
    assert len(biases) == 1 and found[0] is biases[0]
    assert biases[0].sentence.startswith(f"a bias was lost, {words}: ")


def exp(x: str, y: str) -> NodeProto:
    return node("Exp", [x], [y], f"exp_{y}")


def relu_of_tanh(x: str, y: str) -> list[NodeProto]:
    return [node("Tanh", [x], ["t"], "tanh"), node("Relu", ["t"], [y], "relu")]


OTHER: dict[str, Callable[[], tuple[list[NodeProto], list[NodeProto]]]] = {
    "another activation": lambda: (
        [first("a"), node("Tanh", ["a"], ["z"], "act"), last("z")],
        [first("a"), node("Relu", ["a"], ["z"], "act"), last("z")],
    ),
    "an activation too many": lambda: (
        [first("a"), node("Relu", ["a"], ["z"], "act"), last("z")],
        [first("a"), last("a")],
    ),
    "a factor, which is no activation": lambda: (
        [first("a"), last("a")],
        [first("a"), node("Mul", ["a", "half"], ["z"], "scale"), last("z")],
    ),
    "a residual, which is no bias": lambda: (
        [first("a"), last("a")],
        [first("a"), node("Add", ["a", "x"], ["z"], "add"), last("z")],
    ),
    "an activation that became its producer's operator": lambda: (
        [first("a"), exp("a", "e"), node("Exp", ["e"], ["z"], "act"), last("z")],
        [first("a"), exp("a", "e"), node("Tanh", ["e"], ["z"], "act"), last("z")],
    ),
    "the same at the end of a chain of that operator": lambda: (
        [first("a"), exp("a", "d"), exp("d", "e"), node("Exp", ["e"], ["y"], "act")],
        [first("a"), exp("a", "d"), exp("d", "e"), node("Tanh", ["e"], ["y"], "act")],
    ),
    "two activations of which one became their producer's operator": lambda: (
        [first("a"), exp("a", "e"), node("Exp", ["e"], ["z"], "act"), last("z")],
        [first("a"), exp("a", "e"), *relu_of_tanh("e", "z"), last("z")],
    ),
    "an activation that became a second sum": lambda: (
        [first("a"), node("Add", ["a", "b"], ["s"]), node("Add", ["s", "x"], ["z"]), last("z")],
        [first("a"), node("Add", ["a", "b"], ["s"]), node("Relu", ["s"], ["z"]), last("z")],
    ),
    "a bias too many": lambda: ([last("x")], [node("Gemm", ["x", "v"], ["y"], "last")]),
}


@pytest.mark.parametrize("name", OTHER)
def test_other_differences_are_not_called_lost(name: str, tmp_path: Path) -> None:
    found = differences(*OTHER[name](), tmp_path)
    assert found and not any("lost" in d.sentence for d in found)
