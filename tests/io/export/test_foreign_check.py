"""Check data for an ONNX that another tool (torch's own exporter) wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from quick import covering
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.artefacts.check_file import check_path, read_check
from opdf_compile.errors import ArtefactError, InputError
from opdf_compile.files.atomic import sha256
from opdf_compile.io.onnx_student.onnx_loading import load_onnx
from opdf_compile.parity.numerics.checking import check_numerics
from opdf_compile.parity.runtime.registry import resolve_device

CPU = resolve_device("cpu")


class Scorer(nn.Module):
    """Features and a gate in, scores and a label out."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor, gate: Tensor) -> dict[str, Tensor]:
        score = self.head(x) * gate
        return {"score": score, "label": score.argmax(-1)}


def theirs(
    path: Path,
    model: Scorer,
    *,
    names: tuple[str, str] = ("x", "gate"),
    outputs: tuple[str, ...] = ("score", "label"),
    dtype: str = "float32",
    label: int = TensorProto.INT64,
    width: int = 3,
    wrong: float = 0.0,
) -> Path:
    """The file, written by hand: no exporter of ours or of torch takes part."""
    element = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}[dtype]
    weight = model.head.weight.detach().numpy().T.astype(dtype).copy()
    weight.flat[np.abs(weight).argmax()] *= 1 + wrong
    nodes = [
        helper.make_node("Gemm", [names[0], "w", "b"], ["h"]),
        helper.make_node("Mul", ["h", names[1]], [outputs[0]]),
        helper.make_node("ArgMax", [outputs[0]], ["l"], axis=1, keepdims=0),
        helper.make_node("Cast", ["l"], ["label"], to=label),
    ]
    kinds = {outputs[0]: (element, ["n", width]), "label": (label, ["n"])}
    graph = helper.make_graph(
        nodes if "label" in outputs else nodes[:2],
        "theirs",
        [
            helper.make_tensor_value_info(names[0], element, ["n", 5]),
            helper.make_tensor_value_info(names[1], element, ["n", 1]),
        ],
        [helper.make_tensor_value_info(name, *kinds[name]) for name in outputs],
        [
            numpy_helper.from_array(weight, "w"),
            numpy_helper.from_array(model.head.bias.detach().numpy().astype(dtype), "b"),
        ],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path
    )
    return path


def inputs(batch: int = 4) -> dict[str, Any]:
    return {"x": torch.randn(batch, 5).numpy(), "gate": np.ones((batch, 1), np.float32)}


@pytest.mark.parametrize(
    ("dtype", "names"),
    covering(["float32", "float16"], [("x", "gate"), ("first", "second")]),
)
def test_a_right_file_passes_and_a_wrong_one_is_refuted(
    tmp_path: Path, dtype: str, names: tuple[str, str]
) -> None:
    model = Scorer().eval()
    given = dict(zip(names, inputs().values(), strict=True))
    verdicts = []
    for wrong in (0.0, 0.3):
        file = theirs(tmp_path / "m.onnx", model, names=names, dtype=dtype, wrong=wrong)
        written = opdf.write_check_data(model, file, given)
        assert written == check_path(file)
        verdicts.append(check_numerics(file, written, CPU).verdict)
    assert verdicts == ["pass", "fail"]
    data = read_check(written)
    assert data.onnx_sha256 == sha256(file) and data.dtype == dtype
    assert sum(sample.rows("score") for sample in data.samples) >= 16


def test_the_model_keeps_its_dtype_and_flags(tmp_path: Path) -> None:
    model = Scorer().train()
    opdf.write_check_data(model, theirs(tmp_path / "m.onnx", model, dtype="float16"), inputs())
    assert model.training and model.head.weight.dtype is torch.float32


def test_several_samples_of_a_file(tmp_path: Path) -> None:
    model = Scorer().eval()
    file = theirs(tmp_path / "m.onnx", model)
    x = [torch.randn(2, 5).numpy(), torch.randn(2, 5).numpy()]
    np.savez(tmp_path / "f.npz", **{"x@0": x[0], "x@1": x[1], "gate": np.ones((2, 1), np.float32)})
    out = opdf.write_check_data(model, file, tmp_path / "f.npz", tmp_path / "own.check.npz")
    data = read_check(out)
    for k in range(2):
        np.testing.assert_array_equal(data.samples[k].inputs["x"], x[k])
    assert check_numerics(file, out, CPU).verdict == "pass"


def test_outputs_are_matched_by_name_before_position(tmp_path: Path) -> None:
    model = Scorer().eval()
    file = theirs(tmp_path / "one.onnx", model, outputs=("score",))
    assert read_check(opdf.write_check_data(model, file, inputs())).output_names == ("score",)
    file = theirs(tmp_path / "two.onnx", model, outputs=("score", "label"))
    assert check_numerics(file, opdf.write_check_data(model, file, inputs()), CPU).verdict == "pass"


def test_the_model_may_be_an_onnx_file(tmp_path: Path) -> None:
    model = Scorer().eval()
    original = theirs(tmp_path / "original.onnx", model)
    file = theirs(tmp_path / "m.onnx", model)
    written = opdf.write_check_data(load_onnx(original), file, inputs())
    assert check_numerics(file, written, CPU).verdict == "pass"


BAD: dict[str, tuple[dict[str, Any], Any, str]] = {
    "an input is missing": ({}, {"x": np.ones((2, 5), np.float32)}, "lack 'gate'"),
    "an unknown input": ({}, {**inputs(), "z": np.ones(2)}, "hold 'z'"),
    "an input's shape": (
        {},
        {**inputs(), "x": np.ones((4, 6), np.float32)},
        r"'x' has the shape \(4, 6\)",
    ),
    "an input's dtype": ({}, {**inputs(), "x": np.ones((4, 5), np.int64)}, "has dtype int64"),
    "an output's shape": ({"width": 4}, inputs(), r"the output 'score' .* shape \(4, 3\)"),
    "an output's dtype": ({"label": TensorProto.INT32}, inputs(), "'label' .* dtype int64"),
    "a kind of number": ({"label": TensorProto.FLOAT}, inputs(), "'label' .* dtype int64"),
    "no sample": ({}, [], "empty list"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_what_does_not_fit_is_refused_in_a_sentence(tmp_path: Path, name: str) -> None:
    options, given, sentence = BAD[name]
    model = Scorer().eval()
    file = theirs(tmp_path / "m.onnx", model, **options)
    with pytest.raises(InputError, match=sentence) as caught:
        opdf.write_check_data(model, file, given)
    assert "\n" not in str(caught.value)
    assert not check_path(file).exists()


def test_another_number_of_outputs_is_refused(tmp_path: Path) -> None:
    class One(Scorer):
        def forward(self, x: Tensor, gate: Tensor) -> Any:
            return self.head(x) * gate

    model = One().eval()
    with pytest.raises(InputError, match="neither names nor number agree"):
        opdf.write_check_data(model, theirs(tmp_path / "m.onnx", model), inputs())


def test_too_few_inputs_of_the_model_are_refused(tmp_path: Path) -> None:
    file = theirs(tmp_path / "m.onnx", Scorer())
    with pytest.raises(InputError, match="too few to match"):
        opdf.write_check_data(nn.Linear(5, 3), file, inputs())


@pytest.mark.parametrize("content", [b"", b"no zip at all"])
def test_files_that_are_no_inputs_are_refused(tmp_path: Path, content: bytes) -> None:
    file = theirs(tmp_path / "m.onnx", Scorer())
    (tmp_path / "f.npz").write_bytes(content)
    with pytest.raises((InputError, ArtefactError)):
        opdf.write_check_data(Scorer(), file, tmp_path / "f.npz")
