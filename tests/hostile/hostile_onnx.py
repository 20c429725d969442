"""Hostile ONNX files, as candidates of `verify` and as students."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from hostile_case import Build, Case
from onnx import TensorProto, helper, numpy_helper

VERIFY = "verify bad.onnx --reference bad.onnx --only structure --device cpu"
REFERENCE = "verify reference.onnx --reference bad.onnx --only structure --device cpu"
RUN = "verify bad.onnx --reference bad.onnx --only latency --budget 1 --device cpu"
SECRET = bytes(256)


def model(
    nodes: Sequence[onnx.NodeProto],
    tensors: Sequence[onnx.TensorProto] = (),
    functions: Sequence[onnx.FunctionProto] = (),
) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(list(nodes), "g", [x], [y], list(tensors))
    sets = [helper.make_opsetid("", 17), helper.make_opsetid("evil", 1)]
    return helper.make_model(graph, opset_imports=sets, functions=list(functions), ir_version=8)


def product(tensor: onnx.TensorProto) -> onnx.ModelProto:
    return model([helper.make_node("MatMul", ["x", "w"], ["y"])], [tensor])


def weight() -> onnx.TensorProto:
    return numpy_helper.from_array(np.ones((8, 8), np.float32), "w")


def saved(made: onnx.ModelProto) -> Build:
    return raw(lambda: bytes(made.SerializeToString()))


def raw(data: Callable[[], bytes]) -> Build:
    def build(good: Path, here: Path) -> None:
        (here / "reference.onnx").write_bytes((good / "reference.onnx").read_bytes())
        (here / "bad.onnx").write_bytes(data())

    return build


def external(location: str, **entries: Any) -> Build:
    """A weight in another file; what the name leads to is really there."""

    def build(good: Path, here: Path) -> None:
        secret = here / "secret"
        secret.write_bytes(SECRET)
        folder = here / "models"
        folder.mkdir()
        (folder / "link.bin").symlink_to(secret)
        (folder / "short.bin").write_bytes(SECRET[:16])
        os.link(secret, folder / "hard.bin")
        trap = folder / "*" / "_ORT_MEM_ADDR_"
        trap.mkdir(parents=True)
        (trap / "*").write_bytes(SECRET)
        tensor = onnx.TensorProto(name="w", data_type=TensorProto.FLOAT, dims=(8, 8))
        tensor.data_location = TensorProto.EXTERNAL
        place = str(secret) if location == "absolute" else location
        for key, value in {"location": place, **entries}.items():
            tensor.external_data.add(key=key, value=str(value))
        (folder / "bad.onnx").write_bytes(product(tensor).SerializeToString())

    return build


def tensor(dims: Sequence[int], data: bytes | None = None, element: int = 1) -> Build:
    made = onnx.TensorProto(name="w", data_type=element, dims=dims)
    if data is not None:
        made.raw_data = data
    return saved(product(made))


def nested(depth: int) -> bytes:
    """An If in an If, deeper than a parser's stack; written by hand, as onnx would not write it."""

    def field(number: int, data: bytes) -> bytes:
        return varint(number << 3 | 2) + varint(len(data)) + data

    graph = b""
    for _ in range(depth):
        graph = field(1, field(4, b"If") + field(5, field(6, graph)))
    return b"\x08\x08" + field(8, b"\x10\x11") + field(7, graph)


def varint(number: int) -> bytes:
    out = bytearray()
    while number >= 128:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes((*out, number))


def function(name: str, *calls: str) -> onnx.FunctionProto:
    nodes = [helper.make_node(call, ["a"], ["b"], domain="evil") for call in calls]
    for place, node in enumerate(nodes):
        node.input[0], node.output[0] = f"t{place}", f"t{place + 1}"
    nodes[0].input[0], nodes[-1].output[0] = "a", "b"
    return helper.make_function("evil", name, ["a"], ["b"], nodes, [helper.make_opsetid("evil", 1)])


def calling(*functions: onnx.FunctionProto) -> Build:
    return saved(model([helper.make_node("f0", ["x"], ["y"], domain="evil")], (), functions))


def doubling() -> Build:
    chain = [function(f"f{i}", f"f{i + 1}", f"f{i + 1}") for i in range(60)]
    last = helper.make_function(
        "evil",
        "f60",
        ["a"],
        ["b"],
        [helper.make_node("Relu", ["a"], ["b"])],
        [helper.make_opsetid("", 17)],
    )
    return calling(*chain, last)


def cycle() -> Build:
    return saved(
        model(
            [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])]
            + [helper.make_node("Relu", ["b"], ["y"])]
        )
    )


def metadata(key: str, value: str) -> Build:
    made = product(weight())
    made.metadata_props.add(key=key, value=value)
    return saved(made)


def opset(version: int) -> Build:
    made = product(weight())
    made.opset_import[0].version = version
    return saved(made)


def terminal() -> Build:
    return saved(model([helper.make_node("Add", ["x", "\x1b[2Jevil\n"], ["y"])]))


_IN = "verify models/bad.onnx --reference models/bad.onnx --only structure --device cpu"
_TABLE: list[tuple[str, Build, str, str]] = [
    ("external data above", external("../secret"), _IN, "outside the model's folder"),
    ("external data absolute", external("absolute"), _IN, "outside the model's folder"),
    ("external data by a link", external("link.bin"), _IN, "through a symbolic link"),
    ("external data by a hard link", external("hard.bin"), _IN, "a hard link to another file"),
    ("external data too short", external("short.bin", length=256), _IN, "that file has 16 bytes"),
    (
        "external data before the file",
        external("short.bin", offset=-8, length=8),
        _IN,
        "at bytes -8 to 0",
    ),
    ("external data that is gone", external("gone.bin"), _IN, "which is not there"),
    (
        "external data in memory",
        external("*/_ORT_MEM_ADDR_/*", offset=64, length=64),
        _IN,
        "an address in memory",
    ),
    ("huge weight without data", tensor((1 << 40, 1 << 40)), VERIFY, "has 0 values, its shape"),
    ("weight of negative size", tensor((-8, 8), bytes(256)), VERIFY, "has the shape [-8, 8]"),
    ("weight cut short", tensor((8, 8), bytes(200)), VERIFY, "has 200 bytes, its shape"),
    ("weight of no type", tensor((8, 8), bytes(256), 99), VERIFY, "the unknown element type 99"),
    ("If in If without end", raw(lambda: nested(3000)), VERIFY, "is not an ONNX model"),
    ("message of 2 GB", raw(lambda: b"\x3a\xff\xff\xff\xff\x07abc"), VERIFY, "not an ONNX model"),
    ("broken message", raw(lambda: b"\xff" * 99), REFERENCE, "bad.onnx is not an ONNX model"),
    ("cycle", cycle(), VERIFY, "has a cycle"),
    ("function that calls itself", calling(function("f0", "f0")), VERIFY, "'f0' calls itself"),
    (
        "functions that call each other",
        calling(function("f0", "f1"), function("f1", "f0")),
        REFERENCE,
        "calls itself",
    ),
    ("functions of 2^60 nodes", doubling(), VERIFY, "unfold to"),
    (
        "operator of nobody in ONNX",
        saved(model([helper.make_node("Evil", ["x"], ["y"], domain="evil")])),
        RUN,
        "is not a registered function/op",
    ),
    ("parameters without end", metadata("opdf.parameters", "[" * 50_000), VERIFY, "no JSON list"),
    ("parameters of numbers", metadata("opdf.parameters", "[1]"), VERIFY, "no JSON list of names"),
    ("operators of the year 3000", opset(1 << 62), VERIFY, "asks for version 4611686018427387904"),
    ("name that commands the terminal, ONNX", terminal(), VERIFY, r"reads '\x1b[2Jevil\n'"),
]
# The same files, and others, as students.
_STUDENTS: list[tuple[str, Build, str, str]] = [
    (
        "student with data above",
        external("../secret"),
        "inspect models/bad.onnx",
        "outside the model's folder",
    ),
    (
        "student with data in memory",
        external("*/_ORT_MEM_ADDR_/*", offset=64, length=64),
        "expand models/bad.onnx -o out/o.pt2",
        "an address in memory",
    ),
    (
        "student without data",
        tensor((1 << 40, 1 << 40)),
        "plan bad.onnx -o out/plan.json",
        "has 0 values, its shape",
    ),
    ("student with a cycle", cycle(), "export bad.onnx -o out/o.onnx", "has a cycle"),
    (
        "student with an operator of nobody",
        saved(model([helper.make_node("Evil", ["x"], ["y"], domain="evil")])),
        "inspect bad.onnx",
        "Evil",
    ),
    (
        "student whose function calls itself",
        calling(function("f0", "f0")),
        "inspect bad.onnx",
        "'f0' calls itself",
    ),
    (
        "student of 2^60 nodes",
        doubling(),
        "inspect bad.onnx",
        "unfold to",
    ),
    (
        "student that is broken",
        raw(lambda: b"\xff" * 99),
        "inspect bad.onnx",
        "is not an ONNX model",
    ),
    (
        "student with a size of 2^50",
        saved(
            model(
                [
                    helper.make_node("ConstantOfShape", ["s"], ["c"]),
                    helper.make_node("Add", ["x", "c"], ["y"]),
                ],
                [numpy_helper.from_array(np.array([1 << 40, 1 << 10]), "s")],
            )
        ),
        "inspect bad.onnx",
        "can't allocate memory",
    ),
]
ONNX = tuple(
    Case(name, build, command, words) for name, build, command, words in (*_TABLE, *_STUDENTS)
)
