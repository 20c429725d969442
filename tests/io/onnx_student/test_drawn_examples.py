"""Example inputs drawn from a file's input types: which sizes, and what is said of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import opdf_compile as opdf
from opdf_compile.cli import main
from opdf_compile.io.onnx_student.drawn_examples import example_inputs, trace_drawn

FLOAT, BOOL = TensorProto.FLOAT, TensorProto.BOOL
Shape = list[int | str | None]


def info(name: str, shape: Shape | None, element: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, element, shape)


def saved(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    tensors: dict[str, np.ndarray],
) -> Path:
    stored = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    graph = helper.make_graph(nodes, "g", inputs, [info("y", None)], stored)
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    return {n: tuple(t.shape) for n, t in example_inputs(opdf.load_onnx(path)).items()}


@pytest.mark.parametrize("batch", [None, "other"])
def test_a_state_has_the_batch_of_the_inputs(batch: str | None, tmp_path: Path) -> None:
    """At other sizes it runs as well: one axis of 1 is broadcast, and hides the mistake."""
    nodes = [
        helper.make_node("Unsqueeze", ["x", "axes"], ["wide"]),
        helper.make_node("Add", ["wide", "state"], ["y"]),
    ]
    inputs = [info("x", [None, 8]), info("state", [2, batch, 8])]
    path = saved(tmp_path / "m.onnx", nodes, inputs, {"axes": np.array([1])})
    assert shapes(path) == {"x": (2, 8), "state": (2, 2, 8)}


def test_an_open_axis_behind_a_fixed_one_may_be_a_size(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["table", "w"], ["t"]),
        helper.make_node("MatMul", ["x", "t"], ["y"]),
    ]
    inputs = [info("x", ["N", 3]), info("table", [3, "L"])]
    path = saved(tmp_path / "m.onnx", nodes, inputs, {"w": np.ones((64, 5), np.float32)})
    assert shapes(path) == {"x": (2, 3), "table": (3, 64)}


def steered(path: Path, width: int) -> Path:
    """Takes every size where the flag lies one way; the other branch wants a width."""
    flag = bool(example_flag(path))
    any_size = helper.make_graph(
        [helper.make_node("Neg", ["h"], ["a"])], "any", [], [info("a", None)]
    )
    one_size = helper.make_graph(
        [helper.make_node("Add", ["h", "row"], ["b"])], "one", [], [info("b", None)]
    )
    then, other = (any_size, one_size) if flag else (one_size, any_size)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"]),
        helper.make_node("If", ["flag"], ["y"], then_branch=then, else_branch=other),
    ]
    tensors = {"w": np.ones((4, 3, 1), np.float32), "row": np.ones(width, np.float32)}
    return saved(path, nodes, [info("x", ["N", 3, "L"]), info("flag", [], BOOL)], tensors)


def example_flag(path: Path) -> torch.Tensor:
    """What is drawn for the flag, whose value decides the branch."""
    nodes = [helper.make_node("Where", ["flag", "x", "x"], ["y"])]
    inputs = [info("x", ["N", 3, "L"]), info("flag", [], BOOL)]
    return example_inputs(opdf.load_onnx(saved(path, nodes, inputs, {})))["flag"]


def test_other_sizes_are_tried_where_no_graph_holds_the_first(tmp_path: Path) -> None:
    student = opdf.load_onnx(steered(tmp_path / "m.onnx", 64))
    first = tuple(example_inputs(student).values())
    assert first[0].shape == (2, 3, 8)
    assert opdf.trace(student, first, dynamic=student.dynamic, phases=("eval",)).rung == "module"
    traced = trace_drawn(student, phases=("eval",))
    assert traced.rung != "module" and traced.args[0].shape == (2, 3, 64)
    assert not any("was drawn" in note for note in traced.notes)


def test_an_example_of_which_there_is_no_graph_is_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = steered(tmp_path / "m.onnx", 63)
    assert main(["inspect", str(path)]) in (0, None)
    out, err = capfd.readouterr()
    told = " ".join(out.split())
    assert "rung: module" in told and "the example was drawn from the input types" in told
    assert "--input x=2x3x8:float32 --input flag=scalar:bool" in told
    assert "Traceback" not in err
    given = ["--input", "x=2x3x63:float32", "--input", "flag=scalar:bool"]
    assert main(["inspect", str(path), *given]) in (0, None)
    told = " ".join(capfd.readouterr().out.split())
    assert "rung: module" not in told and "was drawn" not in told
