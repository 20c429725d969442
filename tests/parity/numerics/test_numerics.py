"""Numerics: what rounding can do passes, what a wrong weight does is refuted; both as tables.

The truth is computed here, in numpy and float64, and the check files are written here: nothing of
the exporter takes part.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from opdf_compile.errors import ArtefactError
from opdf_compile.parity.numerics.checking import check_numerics
from opdf_compile.parity.numerics.numerics_result import NumericsResult
from opdf_compile.parity.runtime.registry import resolve_device

Arrays = dict[str, Any]
CPU = resolve_device("cpu")
ELEMENT = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}
ELEMENT |= {"float64": TensorProto.DOUBLE, "bfloat16": TensorProto.BFLOAT16}


def weights(dtype: str = "float32", width: int = 48, seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    arrays = {
        "w1": rng.normal(size=(24, width)) / math.sqrt(24),
        "b1": rng.normal(size=width),
        "scale": rng.normal(size=width),
        "shift": rng.normal(size=width),
        "w2": rng.normal(size=(width, 10)) / math.sqrt(width),
        "b2": rng.normal(size=10),
    }
    return {name: array.astype(dtype) for name, array in arrays.items()}


def forward(x: Any, w: Mapping[str, Any], dtype: str) -> Arrays:
    """Linear, relu, layer norm, linear; then the label. In float64 this is the truth."""
    v = {name: array.astype(dtype) for name, array in w.items()}
    h = np.maximum(x.astype(dtype) @ v["w1"] + v["b1"], 0)
    centred = h - h.mean(-1, keepdims=True)
    spread = np.sqrt((centred * centred).mean(-1, keepdims=True) + np.asarray(1e-5, dtype))
    logits = (centred / spread * v["scale"] + v["shift"]) @ v["w2"] + v["b2"]
    return {"logits": logits, "label": logits.argmax(-1)}


def to_onnx(w: Mapping[str, Any], path: Path, dtype: str = "float32") -> Path:
    element = ELEMENT[dtype]
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["g"]),
        helper.make_node("Relu", ["g"], ["h"]),
        helper.make_node("LayerNormalization", ["h", "scale", "shift"], ["n"]),
        helper.make_node("Gemm", ["n", "w2", "b2"], ["logits"]),
        helper.make_node("ArgMax", ["logits"], ["label"], axis=1, keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", element, ["n", 24])],
        [
            helper.make_tensor_value_info("logits", element, ["n", 10]),
            helper.make_tensor_value_info("label", TensorProto.INT64, ["n"]),
        ],
        [numpy_helper.from_array(array, name) for name, array in w.items()],
    )
    return save(graph, path)


def save(graph: onnx.GraphProto, path: Path) -> Path:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


def check_entries(
    onnx_path: Path,
    samples: list[tuple[Arrays, Arrays, Arrays]],
    dtype: str = "float32",
) -> Arrays:
    """Entries of a check file from (inputs, truth, what torch computed) per sample."""
    inputs, truth, _ = samples[0]
    entries: Arrays = {
        "schema": np.array("opdf-check/1"),
        "input_names": np.array(list(inputs)),
        "output_names": np.array(list(truth)),
        "dtype": np.array(dtype),
        "onnx_sha256": np.array(hashlib.sha256(onnx_path.read_bytes()).hexdigest()),
    }
    for i, (inputs, truth, torch_made) in enumerate(samples):
        for name, array in inputs.items():
            narrow = array.dtype.name == "bfloat16"
            entries[f"s{i}.in.{name}"] = array.view(np.uint16) if narrow else array
            if narrow:
                entries[f"s{i}.in.{name}.dtype"] = np.array("bfloat16")
        for name, right in truth.items():
            with np.errstate(invalid="ignore"):
                error = np.abs(torch_made[name].astype(np.float64) - right.astype(np.float64))
                same = torch_made[name].astype(right.dtype) == right
            same |= np.isnan(right.astype(np.float64)) & np.isnan(
                torch_made[name].astype(np.float64)
            )
            error = np.nan_to_num(np.where(same, 0.0, error), nan=np.inf, posinf=np.inf)
            entries[f"s{i}.out.{name}"] = right
            entries[f"s{i}.err.{name}"] = np.float64(error.max(initial=0.0))
            entries[f"s{i}.rms.{name}"] = np.sqrt(np.square(error).sum() / max(error.size, 1))
            size = np.abs(right[np.isfinite(right)]).max(initial=0)
            entries[f"s{i}.maxabs.{name}"] = np.float64(size)
    return entries


def write_check(path: Path, entries: Arrays) -> Path:
    with path.open("wb") as stream:
        np.savez(stream, **entries)
    return path


def evidence(w: Mapping[str, Any], dtype: str = "float32") -> list[tuple[Arrays, Arrays, Arrays]]:
    rng = np.random.default_rng(1)
    found = []
    for batch in (4, 4, 1, 3):
        x = rng.normal(size=(batch, 24)).astype(dtype)
        wide = "float32" if dtype == "float16" else dtype
        rounded = forward(x, w, wide)
        rounded["logits"] = rounded["logits"].astype(dtype)
        found.append(({"x": x}, forward(x, w, "float64"), rounded))
    return found


def judged(
    tmp_path: Path,
    change: Callable[[Arrays], None] = lambda w: None,
    dtype: str = "float32",
    width: int = 48,
) -> NumericsResult:
    """Judge a model whose weights were changed behind the back of its check data."""
    right = weights(dtype, width)
    wrong = {name: array.copy() for name, array in right.items()}
    change(wrong)
    path = to_onnx(wrong, tmp_path / "c.onnx", dtype)
    check = write_check(
        tmp_path / "c.check.npz", check_entries(path, evidence(right, dtype), dtype)
    )
    return check_numerics(path, check, CPU)


def scaled(name: str, factor: float) -> Callable[[Arrays], None]:
    def change(w: Arrays) -> None:
        w[name] = (w[name].astype(np.float64) * factor).astype(w[name].dtype)

    return change


def one_element(name: str, factor: float) -> Callable[[Arrays], None]:
    def change(w: Arrays) -> None:
        flat = w[name].reshape(-1)
        # The largest positive one: a relu hides what a negative bias does.
        place = int(flat.argmax())
        flat[place] = flat[place] * flat.dtype.type(factor)

    return change


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
@pytest.mark.parametrize("width", [1, 48, 700])
def test_a_right_export_passes(tmp_path: Path, dtype: str, width: int) -> None:
    result = judged(tmp_path, dtype=dtype, width=width)
    assert result.verdict == "pass", result.worst
    assert result.samples == 4
    assert result.max_abs_error <= result.tolerance
    assert 0 < result.noise_floor < result.tolerance


@pytest.mark.parametrize("name", ["w1", "b1", "scale", "shift", "w2", "b2"])
@pytest.mark.parametrize("factor", [1.01, 0.99, 1.001, 1.0001])
def test_a_weight_that_is_off_is_refuted(tmp_path: Path, name: str, factor: float) -> None:
    result = judged(tmp_path, scaled(name, factor))
    assert result.verdict == "fail"
    assert "logits" in result.worst


@pytest.mark.parametrize("name", ["w1", "b1", "scale", "shift", "w2", "b2"])
@pytest.mark.parametrize("factor", [1.01, 1.001])
def test_one_element_that_is_off_is_refuted(tmp_path: Path, name: str, factor: float) -> None:
    assert judged(tmp_path, one_element(name, factor)).verdict == "fail"


def test_a_weight_that_is_off_by_a_percent_is_refuted_in_float16(tmp_path: Path) -> None:
    """The last one; float16 itself is off by 5e-4, which hides what layer norm makes smaller."""
    assert judged(tmp_path, scaled("w2", 1.01), "float16").verdict == "fail"


def test_the_reference_measures_the_runtime(tmp_path: Path) -> None:
    result = []
    right, other = weights(), weights(seed=5)
    reference = to_onnx(other, tmp_path / "r.onnx")
    reference_check = write_check(
        tmp_path / "r.check.npz", check_entries(reference, evidence(other))
    )
    for factor in (1.0, 1.01):
        wrong = dict(right)
        scaled("w2", factor)(wrong)
        path = to_onnx(wrong, tmp_path / "c.onnx")
        check = write_check(tmp_path / "c.check.npz", check_entries(path, evidence(right)))
        result.append(
            check_numerics(path, check, CPU, reference=reference, reference_check=reference_check)
        )
    assert [r.verdict for r in result] == ["pass", "fail"]


def test_a_wrong_reference_does_not_excuse_a_wrong_candidate(tmp_path: Path) -> None:
    right, wrong = weights(), weights()
    scaled("w2", 1.01)(wrong)
    path = to_onnx(wrong, tmp_path / "c.onnx")
    check = write_check(tmp_path / "c.check.npz", check_entries(path, evidence(right)))
    result = check_numerics(path, check, CPU, reference=path, reference_check=check)
    assert result.verdict == "fail"


def identity(tmp_path: Path, x: Any, truth: Any, made: Any = None) -> NumericsResult:
    """Judge y = x against any truth, and a torch model that computed `made` (or the truth)."""
    element = helper.np_dtype_to_tensor_dtype(x.dtype)
    shape = list(x.shape)
    info = [helper.make_tensor_value_info(n, element, shape) for n in ("x", "y")]
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    path = save(helper.make_graph(nodes, "g", info[:1], info[1:]), tmp_path / "i.onnx")
    made = truth if made is None else made
    entries = check_entries(path, [({"x": x}, {"y": truth}, {"y": made})], x.dtype.name)
    return check_numerics(path, write_check(tmp_path / "i.check.npz", entries), CPU)


F = np.float32
NAN, INF = math.nan, math.inf

SPECIAL: dict[str, tuple[Any, Any, str]] = {
    "equal": (F([1, 2]), F([1, 2]), "pass"),
    "NaN in both": (F([1, NAN]), F([1, NAN]), "pass"),
    "NaN in the candidate": (F([1, NAN]), F([1, 2]), "fail"),
    "NaN in the truth": (F([1, 2]), F([1, NAN]), "fail"),
    "all NaN": (F([NAN, NAN]), F([NAN, NAN]), "pass"),
    "infinity in both": (F([1, -INF]), F([1, -INF]), "pass"),
    "infinity in the candidate": (F([1, INF]), F([1, 3e38]), "fail"),
    "infinity in the truth": (F([1, 3e38]), F([1, INF]), "fail"),
    "infinity of the other sign": (F([1, -INF]), F([1, INF]), "fail"),
    "infinity for NaN": (F([1, INF]), F([1, NAN]), "fail"),
    "wrong beside an infinity": (F([1, INF]), F([1.01, INF]), "fail"),
    "zero for zero": (F([0, 0]), F([0, 0]), "pass"),
    "something for zero": (F([1e-3, 0]), F([0, 0]), "fail"),
    "zero for something": (F([0, 0]), F([0, 1]), "fail"),
    "half overflows as torch does": (np.float16([1, INF]), np.array([1, 1e6]), "not_checked"),
    "half overflows where its range does not end": (
        np.float16([1, INF]),
        np.array([1, 6e4]),
        "fail",
    ),
    "shape": (F([1, 2]), F([[1, 2]]), "fail"),
    "fewer elements": (F([1, 2]), F([1, 2, 3]), "fail"),
    "no element": (F([]), F([]), "pass"),
    "scalar": (F(3), F(3), "pass"),
    "integers": (np.int64([1, 2]), np.int64([1, 2]), "pass"),
    "an integer off by one": (np.int64([10**9, 2]), np.int64([10**9 + 1, 2]), "fail"),
    "booleans": (np.array([True, False]), np.array([True, False]), "pass"),
    "a boolean": (np.array([True, False]), np.array([True, True]), "fail"),
    "integers for reals": (np.int64([1, 2]), np.float64([1, 2]), "fail"),
    "reals for integers": (F([1, 2]), np.int64([1, 2]), "fail"),
}


@pytest.mark.parametrize("name", SPECIAL)
def test_special_values_dtypes_and_shapes(tmp_path: Path, name: str) -> None:
    x, truth, verdict = SPECIAL[name]
    wide = truth.astype(np.float64) if truth.dtype.kind == "f" else truth
    with np.errstate(over="ignore"):
        made = wide.astype(x.dtype) if x.dtype.kind == truth.dtype.kind == "f" else wide
        result = identity(tmp_path, x, wide, made if made.shape == wide.shape else None)
    assert result.verdict == verdict
    assert bool(result.worst)


def test_the_worst_element_is_named(tmp_path: Path) -> None:
    x = np.ones((2, 3), np.float32)
    x[1, 2] = 1.5
    result = identity(tmp_path, x, np.ones((2, 3)))
    assert result.max_abs_error == 0.5
    assert "(1, 2)" in result.worst


@pytest.mark.parametrize("value", [1.0, 2.0])
def test_where_torch_itself_overflows_nothing_is_proved(tmp_path: Path, value: float) -> None:
    """The noise of such a sample is infinite: whatever the candidate says would pass."""
    x = np.full(3, value, np.float32)
    result = identity(tmp_path, x, np.ones(3), np.array([1, INF, 1]))
    assert result.verdict == "not_checked"


@pytest.mark.parametrize("label", [6, 7, 3])
def test_a_near_tie_that_torch_decides_otherwise_proves_nothing(tmp_path: Path, label: int) -> None:
    result = identity(tmp_path, np.int64([4, label]), np.int64([4, 6]), np.int64([4, 7]))
    assert result.verdict == "not_checked"


def test_bfloat16_goes_in_and_comes_out(tmp_path: Path) -> None:
    import ml_dtypes

    x = np.linspace(-3, 3, 12).astype(ml_dtypes.bfloat16).reshape(3, 4)
    assert identity(tmp_path, x, x.astype(np.float64)).verdict == "pass"
    assert identity(tmp_path, x, x.astype(np.float64) * 1.5).verdict == "fail"


def test_without_check_data_nothing_is_checked(tmp_path: Path) -> None:
    path = to_onnx(weights(), tmp_path / "c.onnx")
    result = check_numerics(path, None, CPU)
    assert (result.verdict, result.samples) == ("not_checked", None)


def test_check_data_of_another_file_judges_nothing(tmp_path: Path) -> None:
    path = to_onnx(weights(), tmp_path / "c.onnx")
    entries = check_entries(path, evidence(weights())) | {"onnx_sha256": np.array("0" * 64)}
    result = check_numerics(path, write_check(tmp_path / "c.check.npz", entries), CPU)
    assert result.verdict == "not_checked"
    assert "SHA-256" in result.worst


BROKEN: dict[str, Callable[[Arrays], object]] = {
    "no schema": lambda e: e.pop("schema"),
    "another schema": lambda e: e.update(schema=np.array("opdf-check/9")),
    "no dtype": lambda e: e.pop("dtype"),
    "no input": lambda e: e.pop("s0.in.x"),
    "no truth": lambda e: [e.pop(k) for k in list(e) if ".out." in k],
    "no error": lambda e: e.pop("s1.err.logits"),
    "an error that is an array": lambda e: e.update({"s0.err.logits": np.zeros(3)}),
    "an error that is text": lambda e: e.update({"s0.rms.logits": np.array("small")}),
    "a pickle": lambda e: e.update({"s0.in.x": np.array([Counter("harmless")], dtype=object)}),
    "another input": lambda e: e.update(
        {"input_names": np.array(["z"])} | {f"s{i}.in.z": e[f"s{i}.in.x"] for i in range(4)}
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_check_data_is_an_artefact_error(tmp_path: Path, name: str) -> None:
    path = to_onnx(weights(), tmp_path / "c.onnx")
    entries = check_entries(path, evidence(weights()))
    BROKEN[name](entries)
    check = write_check(tmp_path / "c.check.npz", entries)
    with pytest.raises(ArtefactError) as caught:
        check_numerics(path, check, CPU)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", bytes(range(256)) * 9])
def test_random_bytes_are_an_artefact_error(tmp_path: Path, content: bytes) -> None:
    path = to_onnx(weights(), tmp_path / "c.onnx")
    check = tmp_path / "c.check.npz"
    check.write_bytes(content)
    with pytest.raises(ArtefactError):
        check_numerics(path, check, CPU)


def test_a_truncated_check_file_is_an_artefact_error(tmp_path: Path) -> None:
    path = to_onnx(weights(), tmp_path / "c.onnx")
    check = write_check(tmp_path / "c.check.npz", check_entries(path, evidence(weights())))
    whole = check.read_bytes()
    for share in (0.1, 0.5, 0.9, 0.999):
        check.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ArtefactError):
            check_numerics(path, check, CPU)


def test_inputs_that_the_graph_does_not_take_are_one_sentence(tmp_path: Path) -> None:
    path = to_onnx(weights(), tmp_path / "c.onnx")
    entries = check_entries(path, evidence(weights()))
    entries["s2.in.x"] = np.zeros((1, 23), np.float32)
    check = write_check(tmp_path / "c.check.npz", entries)
    with pytest.raises(ArtefactError, match=r"does not fit .*shape \(1, 23\)") as caught:
        check_numerics(path, check, CPU)
    assert "\n" not in str(caught.value)
