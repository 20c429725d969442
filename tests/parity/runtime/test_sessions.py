"""Sessions: the device is the one that was said, and bad files end in one sentence."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from opdf_compile.artefacts.onnx_file import read_onnx, read_onnx_with_data
from opdf_compile.errors import ArtefactError, DeviceError, InputError
from opdf_compile.parity.runtime.ort import cuda, sessions
from opdf_compile.parity.runtime.ort.runtime import OnnxRuntime
from opdf_compile.parity.runtime.ort.sessions import open_session
from opdf_compile.parity.runtime.protocol import Device
from opdf_compile.parity.runtime.registry import resolve_device


def _model(weight: np.ndarray) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", weight.shape[0]])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", weight.shape[1]])
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [x],
        [y],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def weight() -> np.ndarray:
    return np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.fixture
def external(tmp_path: Path, weight: np.ndarray) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    path = folder / "m.onnx"
    onnx.save_model(
        _model(weight), path, save_as_external_data=True, location="m.data", size_threshold=0
    )
    return path


def _relocate(path: Path, **entries: str) -> None:
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key in entries:
            entry.value = entries[entry.key]
    path.write_bytes(model.SerializeToString())


def test_cpu_session_computes_and_does_not_spin(tmp_path: Path, weight: np.ndarray) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(_model(weight), path)
    session = open_session(path, resolve_device("cpu"), threads=1)
    x = np.ones((2, 4), np.float32)
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], x @ weight)
    options = session.get_session_options()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert options.intra_op_num_threads == 1


def test_external_data_beside_the_model_is_used(external: Path, weight: np.ndarray) -> None:
    x = np.ones((1, 4), np.float32)
    session = open_session(external, resolve_device("cpu"))
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], x @ weight)
    (tensor,) = read_onnx_with_data(external).graph.initializer
    np.testing.assert_array_equal(numpy_helper.to_array(tensor), weight)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"location": "../m.data"}, "outside the model's folder"),
        ({"location": "/elsewhere.data"}, "outside the model's folder"),
        ({"location": "gone.data"}, "not there"),
        ({"location": ""}, "no file name"),
        ({"location": "soft.data"}, "symbolic link"),
        ({"location": "hard.data"}, "hard link"),
        ({"offset": "-4"}, "bytes -4 to"),
        ({"offset": "many"}, "no number"),
        ({"length": "4800"}, "has 48 bytes"),
    ],
)
def test_external_data_elsewhere_is_refused(
    external: Path, entries: dict[str, str], words: str
) -> None:
    folder = external.parent
    secret = folder.parent / "secret"
    secret.write_bytes((folder / "m.data").read_bytes())
    (folder / "soft.data").symlink_to(secret)
    os.link(secret, folder / "hard.data")
    _relocate(external, **entries)
    with pytest.raises(ArtefactError, match=words):
        open_session(external, resolve_device("cpu"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (bytes(range(256)) * 4, "not an ONNX model"),
        (b"\x08\x07", "no graph"),
        (None, "truncated|not a whole"),
    ],
)
def test_a_file_that_is_no_model_is_one_sentence(
    tmp_path: Path, weight: np.ndarray, content: bytes | None, words: str
) -> None:
    path = tmp_path / "bad.onnx"
    whole = _model(weight).SerializeToString()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(ArtefactError, match=words) as caught:
        open_session(path, resolve_device("cpu"))
    assert "\n" not in str(caught.value)


def test_every_truncation_is_refused(tmp_path: Path, weight: np.ndarray) -> None:
    whole = _model(weight).SerializeToString()
    path = tmp_path / "cut.onnx"
    for length in range(1, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(ArtefactError):
            read_onnx(path)


def test_a_graph_that_the_runtime_refuses_is_an_artefact_error(tmp_path: Path) -> None:
    model = _model(np.zeros((4, 3), np.float32))
    model.graph.node[0].op_type = "NoSuchOperator"
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    with pytest.raises(ArtefactError, match="NoSuchOperator"):
        open_session(path, resolve_device("cpu"))


def test_an_operator_without_kernel_is_a_device_error(tmp_path: Path) -> None:
    model = _model(np.zeros((4, 3), np.float32))
    for info in (*model.graph.input, *model.graph.output):
        info.type.tensor_type.elem_type = TensorProto.BFLOAT16
    bits = numpy_helper.from_array(np.zeros((4, 3), np.uint16), "w")
    bits.data_type = TensorProto.BFLOAT16
    model.graph.initializer[0].CopyFrom(bits)
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    with pytest.raises(DeviceError, match=r"no kernel.*MatMul.*--dtype"):
        open_session(path, resolve_device("cpu"))


def test_unknown_device_and_threads_are_input_errors() -> None:
    with pytest.raises(InputError, match="auto, cpu or cuda"):
        resolve_device("tpu")
    with pytest.raises(InputError, match="from 1 up"):
        sessions.session_options(threads=0)


@pytest.fixture
def no_driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    cuda.missing_for_cuda.cache_clear()
    monkeypatch.setattr(cuda, "load_library", lambda library: None)
    yield
    cuda.missing_for_cuda.cache_clear()


@pytest.mark.usefixtures("no_driver")
def test_cuda_without_driver_names_the_piece_and_the_remedy() -> None:
    with pytest.raises(DeviceError, match=r"(NVIDIA driver|CPU package).*opdf-compile doctor"):
        resolve_device("cuda")
    auto = resolve_device("auto")
    assert auto.name == "cpu"
    assert auto.chosen_because.startswith("auto: ")


def test_a_session_never_falls_back_to_the_cpu(tmp_path: Path, weight: np.ndarray) -> None:
    if resolve_device("auto").name == "cuda":
        pytest.skip("needs a machine whose CUDA provider cannot load")
    path = tmp_path / "m.onnx"
    onnx.save(_model(weight), path)
    with pytest.raises(DeviceError, match="could not be used"):
        open_session(path, Device("cuda", "CUDAExecutionProvider", runtime=OnnxRuntime()))


def test_exact_int8_sums_that_the_runtime_refuses_are_told(
    weight: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Without VNNI the runtime rewrites int8 weights, and may stumble over a valid graph."""
    onnx.save(_model(weight), tmp_path / "a.onnx")
    made, refused = sessions.create_session, []

    def refusing(path: Path, device: Device, options: Any) -> Any:
        if not refused:
            refused.append(options.get_session_config_entry("session.x64quantprecision"))
            raise ArtefactError("onnxruntime cannot load a.onnx")
        return made(path, device, options)

    monkeypatch.setattr(sessions, "create_session", refusing)
    assert open_session(tmp_path / "a.onnx", resolve_device("cpu"), unsaturated=True).get_inputs()
    assert refused == ["1"]
    assert "sums of int8 products may be cut off on this processor" in caplog.text
