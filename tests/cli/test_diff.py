"""`opdf-compile diff`: what it prints, its exit codes, its JSON and its picture."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

Run = Callable[[str], int]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """The same model, renamed, with another operator, and with another number."""

    def model(op: str = "Relu", node: str = "act", first: float = 1.0) -> onnx.ModelProto:
        weight = np.arange(12, dtype=np.float32).reshape(4, 3)
        weight[0, 0] = first
        graph = helper.make_graph(
            [
                helper.make_node("Gemm", ["x", "w"], ["h"], "fc", transB=1),
                helper.make_node(op, ["h"], ["y"], node),
            ],
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
            [numpy_helper.from_array(weight, "w")],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)

    made = {
        "a": model(),
        "renamed": model(node="other"),
        "tanh": model(op="Tanh"),
        "number": model(first=2.0),
    }
    for name, content in made.items():
        onnx.save(content, tmp_path / f"{name}.onnx")
    return {name: tmp_path / f"{name}.onnx" for name in made}


@pytest.mark.parametrize(
    ("other", "options", "code", "words"),
    [
        ("a", "", 0, ["graphs: equal (2 nodes)"]),
        ("renamed", "", 0, ["names of nodes (1 of 2)", "'act', ..", "graphs: equal"]),
        ("tanh", "", 1, ["difference:", "Tanh", "candidate:", "graphs: different"]),
        ("number", "", 0, ["1 of 1 parameters hold other numbers: w", "graphs: equal"]),
        ("number", "--values", 1, ["graphs: equal (2 nodes), values: different"]),
        ("a", "--values", 0, ["graphs: equal (2 nodes)"]),
    ],
)
def test_what_is_printed_and_the_exit_code(
    other: str,
    options: str,
    code: int,
    words: list[str],
    files: dict[str, Path],
    run: Run,
    capsys: Capture,
) -> None:
    assert run(f"diff {files['a']} {files[other]} {options}") == code
    out = capsys.readouterr().out
    for word in words:
        assert word in out
    assert run(f"diff {files['a']} {files[other]} {options} --json -") == code
    assert json.loads(capsys.readouterr().out)["exit_code"] == code
    # Nothing says what a parameter is, and the note says what follows.
    assert "lacks the exporter's record of parameters" in out


def test_json_and_the_picture(
    files: dict[str, Path], run: Run, capsys: Capture, tmp_path: Path
) -> None:
    picture = tmp_path / "d.png"
    assert run(f"diff {files['a']} {files['tanh']} --plot {picture} --json -") == 1
    said = json.loads(capsys.readouterr().out)
    assert said["schema"] == "opdf-diff/1" and not said["equal"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    equal = tmp_path / "e.png"
    assert run(f"diff {files['a']} {files['renamed']} --plot {equal}") == 0
    assert "was not drawn: the graphs do not differ" in capsys.readouterr().out
    assert not equal.exists()


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("diff {a} gone.onnx", "gone.onnx"),
        ("diff {a} {a} --plot d.txt", "is no .png, .svg, .pdf file"),
        ("diff {a}", "Missing argument"),
    ],
)
def test_bad_input_is_one_sentence(
    line: str, sentence: str, files: dict[str, Path], run: Run, capsys: Capture
) -> None:
    assert run(line.format(a=files["a"])) == 2
    err = capsys.readouterr().err
    assert sentence in err and len(err.strip().splitlines()) == 1
