"""ONNX in, ONNX out on the command line, trained in a process that never saw this package."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from opdf_compile.cli import main

TRAIN = """
import sys, torch
program = torch.export.load("E.pt2")
module = program.module()
optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=1e-5)
for _ in range(3):
    optimizer.zero_grad()
    loss = module(torch.randn(2, 8)).square().mean()
    loss.backward()
    optimizer.step()
assert "opdf_compile" not in sys.modules
torch.export.save(program, "T.pt2")
"""


def run(arguments: str) -> int:
    try:
        return int(main(arguments.split()) or 0)
    except SystemExit as ended:
        return int(ended.code or 0)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tensors = {"a": np.ones((8, 16), np.float32), "b": np.ones((16, 4), np.float32)}
    tensors["c"] = np.arange(4, dtype=np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "a"], ["h"]),
            helper.make_node("Gemm", ["h", "b", "c"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save_model(model, "m.onnx")
    return tmp_path


@pytest.mark.slow
def test_a_file_trains_elsewhere_and_comes_back(folder: Path) -> None:
    assert run("plan m.onnx --cores 3 -o plan.json -q") == 0
    assert run("expand m.onnx --plan plan.json -o E.pt2 -q") == 0
    subprocess.run([sys.executable, "-c", TRAIN], cwd=folder, check=True, timeout=300)
    assert run("fold T.pt2 -o OUT.onnx --model m.onnx -q") == 0
    verify = "verify OUT.onnx --reference m.onnx --only structure,numerics -q"
    assert run(verify) == 0
    before, after = (
        {t.name: numpy_helper.to_array(t) for t in onnx.load(name).graph.initializer}
        for name in ("m.onnx", "OUT.onnx")
    )
    assert not np.array_equal(before["a"], after["a"])
    assert before["c"].tobytes() == after["c"].tobytes()
    assert run("export OUT.onnx --reference m.onnx -o bundle -q") == 0
    manifest = json.loads(Path("bundle/manifest.json").read_text())
    assert manifest["opset"] == 17 and "student.check.npz" in manifest["files"]
    # Whatever else changes in the file is still refuted.
    model = onnx.load("OUT.onnx")
    (bias,) = (t for t in model.graph.initializer if t.name == "c")
    bias.raw_data = (after["c"] * np.float32(1.01)).tobytes()
    onnx.save_model(model, "OUT.onnx")
    assert run("verify OUT.onnx --reference m.onnx --only structure -q") == 1


def test_an_unknown_operator_exits_with_two(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = onnx.load("m.onnx")
    model.graph.node[0].op_type = "Wobble"
    onnx.save_model(model, "odd.onnx")
    assert run("inspect odd.onnx") == 2
    assert "is a Wobble of the domain ai.onnx, opset 17" in " ".join(
        capsys.readouterr().err.split()
    )
