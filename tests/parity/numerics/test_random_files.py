"""Random numbers, in the torch model or in the file: never a pass, whatever the weights are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.artefacts.check_file import CheckData, Sample, check_path, write_check
from opdf_compile.files.atomic import sha256
from opdf_compile.parity.numerics.checking import check_numerics
from opdf_compile.parity.numerics.drawing import drawing_outputs
from opdf_compile.parity.runtime.registry import resolve_device

CPU = resolve_device("cpu")
Nodes = list[onnx.NodeProto]


class Net(nn.Module):
    def __init__(self, kind: str, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body, self.head, self.kind = nn.Linear(8, 32), nn.Linear(32, 4), kind

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = torch.relu(self.body(x))
        steady = self.head(h)
        if self.kind == "dropout":
            h = F.dropout(h, 0.1)
        if self.kind == "noise":
            h = h + 0.1 * torch.randn_like(h)
        return {"steady": steady, "y": self.head(h)}


def theirs(model: Net, path: Path) -> Path:
    """The deterministic part of a net, written by hand."""
    tensors = {k: v.detach().numpy() for k, v in model.state_dict().items()}
    nodes = [
        helper.make_node("Gemm", ["x", "body.weight", "body.bias"], ["g"], transB=1),
        helper.make_node("Relu", ["g"], ["h"]),
        helper.make_node("Gemm", ["h", "head.weight", "head.bias"], ["steady"], transB=1),
        helper.make_node("Gemm", ["h", "head.weight", "head.bias"], ["y"], transB=1),
    ]
    return saved(nodes, tensors, path, outputs=("steady", "y"))


def saved(
    nodes: Nodes,
    tensors: dict[str, Any],
    path: Path,
    *,
    outputs: tuple[str, ...] = ("y",),
    functions: tuple[onnx.FunctionProto, ...] = (),
    opset: int = 18,
) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info(o, TensorProto.FLOAT, ["n", None]) for o in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("own", 1)]
    onnx.save(
        helper.make_model(graph, opset_imports=opsets, ir_version=9, functions=functions), path
    )
    return path


@pytest.mark.parametrize("kind", ["dropout", "noise"])
@pytest.mark.parametrize("seed", [1, 2], ids=["its own weights", "other weights"])
def test_a_random_output_is_not_judged(tmp_path: Path, kind: str, seed: int) -> None:
    model, file = Net(kind, 1).eval(), theirs(Net(kind, seed), tmp_path / "m.onnx")
    opdf.write_check_data(model, file, {"x": torch.randn(4, 8)})
    report = opdf.verify(file, only="numerics", device="cpu")
    (steady, y) = report.numerics.outputs
    assert y.unjudged.startswith("the torch model draws random numbers for it (aten.")
    assert "in the forward of Net (test_random_files.py:" in y.unjudged
    # The output that no noise reaches is judged as ever.
    assert not steady.unjudged and (steady.excess > 1) == (seed == 2)
    assert report.numerics.verdict == ("fail" if seed == 2 else "not_checked")
    assert report.exit_code == (1 if seed == 2 else 4)


def test_our_own_export_of_a_random_model_is_not_judged(tmp_path: Path) -> None:
    file = opdf.export_onnx(Net("dropout", 1), (torch.randn(4, 8),), tmp_path / "m.onnx")
    report = opdf.verify(file, only="numerics", device="cpu")
    assert report.exit_code == 4 and report.numerics.verdict == "not_checked"
    assert "aten.dropout" in str(report) and "aten.dropout" in report.to_markdown()


def test_a_random_output_of_another_shape_is_still_refuted(tmp_path: Path) -> None:
    model = Net("noise", 1)
    file = theirs(model, tmp_path / "m.onnx")
    opdf.write_check_data(model, file, {"x": torch.randn(4, 8)})
    wide = nn.Linear(32, 5)
    model.head.weight, model.head.bias = wide.weight, wide.bias
    data = opdf_check(file, theirs(model, tmp_path / "m.onnx"))
    found = check_numerics(file, data, CPU)
    assert found.verdict == "fail" and "has shape" in found.worst


def opdf_check(old: Path, new: Path) -> Path:
    """Sign the check data of a file for another one of its name."""
    import dataclasses

    from opdf_compile.artefacts.check_file import read_check

    data = read_check(check_path(old))
    write_check(check_path(new), dataclasses.replace(data, onnx_sha256=sha256(new)))
    return check_path(new)


def dropout(*inputs: str) -> Nodes:
    return [helper.make_node("Dropout", list(inputs), ["y"], "drop")]


def branch(operator: str) -> Nodes:
    out = [helper.make_tensor_value_info("b", TensorProto.FLOAT, None)]
    graphs = [
        helper.make_graph([helper.make_node(op, ["x"], ["b"], "inner")], op, [], out)
        for op in ("Relu", operator)
    ]
    head = helper.make_node(
        "If", ["yes"], ["y"], "if", then_branch=graphs[0], else_branch=graphs[1]
    )
    return [head]


FUNCTION = helper.make_function(
    "own",
    "Shake",
    ["a"],
    ["c"],
    [
        helper.make_node("RandomNormalLike", ["a"], ["r"], "r"),
        helper.make_node("Add", ["a", "r"], ["c"]),
    ],
    [helper.make_opsetid("", 18)],
)
YES, NO = np.array(True), np.array(False)
HALF, NOTHING = np.array(0.5, np.float32), np.array(0, np.float32)
# Nodes, constants, and the node that draws.
FILES: dict[str, tuple[Nodes, dict[str, Any], str]] = {
    "normal": (
        [
            helper.make_node("RandomNormalLike", ["x"], ["r"], "r"),
            helper.make_node("Add", ["x", "r"], ["y"]),
        ],
        {},
        "RandomNormalLike 'r'",
    ),
    "unused": (
        [
            helper.make_node("RandomNormalLike", ["x"], ["r"], "r"),
            helper.make_node("Relu", ["x"], ["y"]),
        ],
        {},
        "",
    ),
    "bernoulli": ([helper.make_node("Bernoulli", ["x"], ["y"], "b")], {}, "Bernoulli 'b'"),
    "dropout": (dropout("x"), {}, ""),
    "dropout in training": (dropout("x", "r", "t"), {"r": HALF, "t": YES}, "Dropout 'drop'"),
    "dropout, default ratio": (dropout("x", "", "t"), {"t": YES}, "Dropout 'drop'"),
    "dropout that is off": (dropout("x", "r", "t"), {"r": HALF, "t": NO}, ""),
    "dropout of nothing": (dropout("x", "r", "t"), {"r": NOTHING, "t": YES}, ""),
    "a branch": (branch("RandomNormalLike"), {"yes": YES}, "RandomNormalLike 'inner'"),
    "a steady branch": (branch("Abs"), {"yes": YES}, ""),
    "a function": (
        [helper.make_node("Shake", ["x"], ["y"], "f", domain="own")],
        {},
        "RandomNormalLike 'r'",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_what_a_file_draws_is_found_where_it_reaches_an_output(tmp_path: Path, name: str) -> None:
    nodes, tensors, wanted = FILES[name]
    functions = (FUNCTION,) if name == "a function" else ()
    file = saved(nodes, tensors, tmp_path / "m.onnx", functions=functions)
    assert drawing_outputs(file) == ({"y": wanted} if wanted else {})


@pytest.mark.parametrize(
    ("opset", "is_test", "draws"), [(6, 0, True), (6, 1, False), (7, None, False)]
)
def test_dropouts_of_old_operator_sets(
    tmp_path: Path, opset: int, is_test: int | None, draws: bool
) -> None:
    attributes = {} if is_test is None else {"is_test": is_test}
    nodes = [helper.make_node("Dropout", ["x"], ["y"], "d", **attributes)]
    file = saved(nodes, {}, tmp_path / "m.onnx", opset=opset)
    assert drawing_outputs(file) == ({"y": "Dropout 'd'"} if draws else {})


def test_a_dropout_whose_caller_says_what_it_drops_draws(tmp_path: Path) -> None:
    drop = helper.make_node("Dropout", ["a"], ["b"], "d")
    drop.attribute.add(name="ratio", type=onnx.AttributeProto.FLOAT, ref_attr_name="ratio")
    body = helper.make_function(
        "own", "Drop", ["a"], ["b"], [drop], [helper.make_opsetid("", 6)], ["ratio"]
    )
    call = helper.make_node("Drop", ["x"], ["y"], "f", domain="own", ratio=0.1)
    file = saved([call], {}, tmp_path / "m.onnx", functions=(body,), opset=6)
    assert drawing_outputs(file) == {"y": "Dropout 'd'"}


def evidence(file: Path, error: float) -> Path:
    """Check data of the identity, with an error that torch is said to have."""
    x = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)
    sample = Sample({"x": x}, {"y": x.astype(np.float64)}, {"y": error}, {"y": error}, {"y": 3.0})
    data = CheckData(("x",), ("y",), "float32", (sample,), sha256(file), {"y": "float32"})
    write_check(check_path(file), data)
    return check_path(file)


@pytest.mark.parametrize(
    ("scale", "error", "verdict"),
    [(1.0, 1e-7, "fail"), (0.0, 1e-7, "not_checked"), (1.0, 5.0, "not_checked")],
    ids=["off", "by luck", "older check data of a random model"],
)
def test_a_file_that_draws_is_never_right(
    tmp_path: Path, scale: float, error: float, verdict: str
) -> None:
    nodes = [
        helper.make_node("RandomNormalLike", ["x"], ["r"], "r", seed=1.0),
        helper.make_node("Mul", ["r", "s"], ["n"]),
        helper.make_node("Add", ["x", "n"], ["y"]),
    ]
    file = saved(nodes, {"s": np.array(scale, np.float32)}, tmp_path / "m.onnx")
    found = check_numerics(file, evidence(file, error), CPU)
    assert found.verdict == verdict
    assert "the file draws random numbers for it (RandomNormalLike 'r')" in found.worst
