"""OpenCV: right files pass, what it gets wrong is refuted and said to be its own."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper
from small_graphs import gate, port, product, save, unknown
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.cli import environment
from opdf_compile.errors import DeviceError, InputError
from opdf_compile.parity.runtime.protocol import Device, RunFailed
from opdf_compile.parity.runtime.registry import resolve_device

needs_opencv = pytest.mark.skipif(
    importlib.util.find_spec("cv2") is None,
    reason="OpenCV is not installed; the extra opencv brings it",
)
ENGINES = ("opencv", "opencv-classic")


@pytest.fixture(params=ENGINES)
def device(request: pytest.FixtureRequest) -> Device:
    return resolve_device("cpu", request.param)


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    folder = tmp_path_factory.mktemp("right") / "bundle"
    opdf.export_onnx(student, (torch.randn(4, 6),), folder, reference=student)
    return folder


class Gated(nn.Module):
    """A squeeze-and-excite block, as MobileNetV3 has it."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(3, 2, 1), nn.Conv2d(2, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        found = F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))
        return x * F.hardsigmoid(self.excite(found))


@needs_opencv
def test_a_right_pair_passes_in_every_part(right: Path) -> None:
    report = opdf.verify(right, runtime="opencv", margin=1.0, budget=1)
    assert report.numerics.verdict == report.structure.verdict == "pass"
    assert report.structure.optimised is not None
    assert report.structure.optimised.verdict == "not_compared"
    told = ("opencv does not tell the graph that it runs",)
    assert report.structure.optimised.differences == told
    assert report.latency.provider == "ENGINE_NEW"


@needs_opencv
def test_a_gate_that_it_takes_for_another_operator_is_refuted_as_its_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    file = tmp_path / "gated.onnx"
    opdf.export_onnx(Gated().eval(), (torch.randn(2, 3, 4, 4),), file)
    assert opdf.verify(file, only="numerics", device="cpu").numerics.verdict == "pass"
    found = opdf.verify(file, only="numerics", runtime="opencv").numerics
    assert found.verdict == "fail" and found.max_rel_error is not None
    assert found.max_rel_error > 0.1
    (note,) = (note for note in found.notes if "another function" in note)
    assert note.startswith("the file is right in onnxruntime ") and "; opencv 5" in note


@needs_opencv
def test_the_gate_alone(tmp_path: Path) -> None:
    """Where a release mends it, what docs/runtimes.md says of OpenCV has to be measured again."""
    device = resolve_device("cpu", "opencv")
    model = device.runtime.load(gate(tmp_path / "m.onnx"), device)
    x, z = np.array([[-4, -1, 1, 4], [3, 3, 0, -3]], np.float32)[:, None]
    np.testing.assert_allclose(model({"x": x, "z": z})["y"], z * np.clip(z / 6 + 0.5, 0, 1))


@needs_opencv
def test_sizes_threads_and_external_data(device: Device, tmp_path: Path) -> None:
    file = product(tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0)
    model = device.runtime.load(file, device, threads=1)
    for rows in (1, 5, 2):
        x = np.arange(4 * rows, dtype=np.float32).reshape(rows, 4)
        np.testing.assert_array_equal(model({"x": x})["y"], x @ np.ones((4, 3), np.float32))
    first = model({"x": np.ones((1, 4), np.float32)})["y"]
    model({"x": np.zeros((1, 4), np.float32)})
    assert first[0, 0] == 4
    bound = model.bind({"x": np.ones((2, 4), np.float32)})
    bound.run()
    assert bound.seconds(2) > 0
    with pytest.raises(InputError, match="from 1 up"):
        device.runtime.load(file, device, threads=0)
    with pytest.raises(DeviceError, match="without its graph optimisation"):
        device.runtime.load(file, device, optimised=False)


@needs_opencv
def test_what_is_not_the_models_never_reaches_it(device: Device, tmp_path: Path) -> None:
    model = device.runtime.load(product(tmp_path / "m.onnx"), device)
    x = np.ones((2, 4), np.float32)
    for wrong, words in (
        ({}, "no input 'x' was given"),
        ({"x": x.astype(np.float64)}, "'x' has the dtype float64, the file wants"),
        ({"x": x[:, :3]}, r"'x' has the shape \(2, 3\)"),
    ):
        with pytest.raises(RunFailed, match=words):
            model(wrong)
    with pytest.raises(InputError, match=r"does not run on the inputs x \[2, 3\]"):
        model.bind({"x": x[:, :3]})
    # A net that was given float64 once would answer with other numbers ever after.
    assert model({"x": x})["y"][0, 0] == 4


@needs_opencv
def test_an_operator_that_it_does_not_have(device: Device, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"cannot read .*m.onnx \(.*NoSuchOperator") as caught:
        device.runtime.load(unknown(tmp_path / "m.onnx"), device)
    assert "\n" not in str(caught.value) and ".cpp" not in str(caught.value)


@needs_opencv
def test_types_that_it_changes_are_one_sentence(device: Device, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"whose input 'x' is float16 \(it does not take"):
        device.runtime.load(product(tmp_path / "m.onnx", TensorProto.FLOAT16), device)


@needs_opencv
def test_integers_keep_the_type_of_the_file(device: Device, tmp_path: Path) -> None:
    ends = (port(name, ["n", 4], TensorProto.INT64) for name in "xy")
    node = helper.make_node("Identity", ["x"], ["y"])
    file = save(tmp_path / "m.onnx", [node], [next(ends)], [next(ends)])
    x = np.array([[1, -2, 3, 4]])
    found = device.runtime.load(file, device)({"x": x})["y"]
    assert found.dtype == np.int64 and (found == x).all()


@needs_opencv
def test_an_engine_that_ends_its_process_is_one_sentence(tmp_path: Path) -> None:
    device = resolve_device("cpu", "opencv-classic")
    model = device.runtime.load(product(tmp_path / "m.onnx"), device)
    x = {"x": np.ones((1, 4), np.float32)}
    child = model._hold.__closure__  # type: ignore[attr-defined]
    (apart,) = (
        cell.cell_contents.__self__ for cell in child if hasattr(cell.cell_contents, "__self__")
    )
    apart._process.kill()
    with pytest.raises(RunFailed, match="the engine ends its process with signal 9"):
        model(x)
    # Another process does the next one.
    assert model(x)["y"][0, 0] == 4


def test_a_package_that_is_not_installed_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(DeviceError, match=r"OpenCV is not installed; .*opencv-python-headless>="):
        resolve_device("auto", "opencv")
    found = {line.name: line for line in environment.examine()}
    for name in ENGINES:
        line = found[f"--runtime {name}"]
        assert line.level == "note" and "pip install 'opencv-python-headless>=" in line.remedy


@needs_opencv
def test_words_for_devices(device: Device) -> None:
    name = device.runtime.name
    with pytest.raises(InputError, match=f"{name} has no device 'cuda'; give auto or cpu"):
        resolve_device("cuda", name)
    assert resolve_device("auto", name).chosen_because.startswith("auto: ")
