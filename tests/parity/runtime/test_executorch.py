"""ExecuTorch: a file's own program runs, another file's is refused, a wrong one is refuted."""

from __future__ import annotations

import json
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from small_graphs import product
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.artefacts import changed_files, read_check, read_manifest
from opdf_compile.cli import environment, main
from opdf_compile.errors import ArtefactError, DeviceError, ExportError, InputError
from opdf_compile.io.export import pte
from opdf_compile.parity.runtime.et import runtime as runtime_module
from opdf_compile.parity.runtime.protocol import Device, RunFailed
from opdf_compile.parity.runtime.registry import resolve_device

needs_executorch = pytest.mark.skipif(
    find_spec("executorch") is None,
    reason="ExecuTorch is not installed; the extra executorch brings it",
)


@pytest.fixture
def device() -> Device:
    return resolve_device("cpu", "executorch")


def convolutional(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    conv, norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
    return nn.Sequential(conv, norm, nn.ReLU(), nn.Flatten(), nn.Linear(512, 4)).eval()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("executorch") / "bundle"
    example = (torch.randn(2, 3, 8, 8),)
    student, reference = convolutional(1), convolutional(2)
    opdf.export_onnx(student, example, folder, reference=reference, executorch=True)
    return folder


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 16, num_layers=2, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.lstm(x)[0][:, -1])
        return scores


class Mixed(nn.Module):
    """An input that is not read, one that is no tensor, outputs of two types and one that is none.

    Where inputs or outputs were dropped, those behind them would stand in their places.
    """

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(50, 8), nn.Linear(8, 4)

    def forward(self, spare: Tensor, ids: Tensor, doubled: bool, mask: Tensor) -> dict[str, Any]:
        x = self.table(ids) * mask[..., None]
        scores = self.head(2 * x if doubled else x)
        return {"constant": 3, "best": scores.argmax(-1), "scores": scores}


@needs_executorch
def test_a_right_pair_passes_in_every_part(bundle: Path) -> None:
    report = opdf.verify(bundle, runtime="executorch", margin=1.0, budget=1)
    assert report.numerics.verdict == report.structure.verdict == "pass"
    assert report.structure.optimised is not None
    told = ("executorch does not tell the graph that it runs",)
    assert report.structure.optimised.differences == told
    assert (report.latency.device, report.latency.provider) == ("cpu", "XnnpackBackend")


@needs_executorch
def test_the_programs_are_parts_of_the_bundle(bundle: Path) -> None:
    assert {"student.pte", "reference/reference.pte"} <= set(read_manifest(bundle)["files"])
    assert changed_files(bundle) == ()


@needs_executorch
@pytest.mark.parametrize(
    ("model", "example"),
    [
        (Recurrent(), (torch.randn(2, 5, 8),)),
        (
            Mixed(),
            (torch.ones(2), torch.randint(0, 50, (2, 6)), True, torch.ones(2, 6)),
        ),
    ],
    ids=["lstm", "mixed"],
)
def test_other_models(
    model: nn.Module, example: tuple[Any, ...], device: Device, tmp_path: Path
) -> None:
    file = tmp_path / "m.onnx"
    opdf.export_onnx(model.eval(), example, file, executorch=True)
    found = opdf.verify(file, only="numerics", runtime="executorch").numerics
    assert found.verdict == "pass", found
    # By the names of the file, against the truth: the samples have batches of 1 to 16.
    loaded = device.runtime.load(file, device)
    for sample in read_check(file.with_suffix(".check.npz")).samples:
        for name, value in loaded(sample.inputs).items():
            assert value.shape == sample.outputs[name].shape
            np.testing.assert_allclose(value, sample.outputs[name], atol=1e-5)


@needs_executorch
def test_a_weight_that_is_off_is_refuted(bundle: Path, tmp_path: Path) -> None:
    """The files fit each other, so the numbers alone can tell."""
    student = convolutional(1)
    with torch.no_grad():
        next(student.parameters())[0].mul_(1.01)
    file = tmp_path / "student.onnx"
    opdf.export_onnx(student, (torch.randn(2, 3, 8, 8),), file, executorch=True)
    report = opdf.verify(
        file, check=bundle / "student.check.npz", runtime="executorch", only="numerics"
    )
    assert report.numerics.verdict == "fail"
    # The default runtime finds it wrong too, so nobody else is blamed.
    assert not any("is right in" in note for note in report.numerics.notes)


@needs_executorch
def test_a_program_of_other_weights_is_refused(
    bundle: Path, device: Device, tmp_path: Path
) -> None:
    """The graphs are equal: what is stale is the program of an earlier student."""
    for name in ("student.onnx", "student.check.npz"):
        shutil.copyfile(bundle / name, tmp_path / name)
    file, program = tmp_path / "student.onnx", tmp_path / "student.pte"
    with pytest.raises(ArtefactError, match=r"student\.pte, which does not exist.*--executorch"):
        device.runtime.load(file, device)
    shutil.copyfile(bundle / "reference" / "reference.pte", program)
    with pytest.raises(ArtefactError, match=r"was lowered with another file.*--executorch"):
        device.runtime.load(file, device)
    shutil.copyfile(bundle / "student.pte", program)
    device.runtime.load(file, device)
    model = onnx.load(file)
    model.doc_string = "another hand was here"
    onnx.save(model, file)
    with pytest.raises(ArtefactError, match=r"than .*student\.onnx as it is now"):
        device.runtime.load(file, device)


@needs_executorch
def test_a_file_that_is_no_program_is_one_sentence(device: Device, tmp_path: Path) -> None:
    file = product(tmp_path / "m.onnx")
    (tmp_path / "m.pte").write_bytes(b"no program" * 100)
    with pytest.raises(DeviceError, match=r"executorch cannot load .*m\.pte \(.*export again") as e:
        device.runtime.load(file, device)
    assert "\n" not in str(e.value)
    with pytest.raises(DeviceError, match="whose input 'x' is bfloat16"):
        device.runtime.load(product(file, TensorProto.BFLOAT16), device)


@needs_executorch
def test_sizes_and_threads(bundle: Path, device: Device) -> None:
    file = bundle / "student.onnx"
    with torch.no_grad():
        student = convolutional(1).double()
    one = device.runtime.load(file, device, threads=1)
    # Another number of threads in the same process; the first model runs on.
    two = device.runtime.load(file, device, threads=2)
    for rows in (1, 16, 64, 3):
        x = torch.randn(rows, 3, 8, 8)
        with torch.no_grad():
            truth = student(x.double()).numpy()
        for model in (one, two):
            np.testing.assert_allclose(model({"input": x.numpy()})["output"], truth, atol=1e-5)
    first = one({"input": np.ones((1, 3, 8, 8), np.float32)})["output"]
    kept = first.copy()
    one({"input": np.zeros((1, 3, 8, 8), np.float32)})
    np.testing.assert_array_equal(first, kept)
    bound = one.bind({"input": np.ones((2, 3, 8, 8), np.float32)})
    bound.run()
    assert bound.seconds(2) > 0
    with pytest.raises(DeviceError, match="without its graph optimisation"):
        device.runtime.load(file, device, optimised=False)


@needs_executorch
def test_what_it_does_not_take_is_a_reason(bundle: Path, device: Device) -> None:
    model = device.runtime.load(bundle / "student.onnx", device)
    x = np.ones((65, 3, 8, 8), np.float32)
    with pytest.raises(RunFailed, match="bounded tensor with a maximum capacity of 12288"):
        model({"input": x})
    with pytest.raises(InputError, match=r"does not run on the inputs input \[65, 3, 8, 8\]"):
        model.bind({"input": x})
    for wrong, words in (
        ({}, "no input 'input' was given"),
        ({"input": x[:, :2]}, r"'input' has the shape"),
        ({"input": x.astype(np.float64)}, "'input' has the dtype float64"),
    ):
        with pytest.raises(RunFailed, match=words):
            model(wrong)
    model({"input": x[:2]})


@needs_executorch
def test_the_command_writes_the_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "m.onnx"
    words = ["torch.nn:Linear?in_features=6&out_features=3", "--input", "input=2x6:float32"]
    assert main(["export", *words, "--executorch", "-o", str(file), "--json", "-"]) == 0
    assert str(tmp_path / "m.pte") in json.loads(capsys.readouterr().out)["files"]
    assert main(["verify", str(file), "--runtime", "executorch", "--only", "numerics"]) == 0


@needs_executorch
def test_nothing_is_written_where_it_cannot_be_lowered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(program: object, digest: str) -> bytes:
        raise RuntimeError("no such operator\nand a stack")

    monkeypatch.setattr(pte, "_written", refuse)
    with pytest.raises(ExportError, match=r"cannot lower the model \(RuntimeError: no such oper"):
        opdf.export_onnx(nn.Linear(6, 3), (torch.ones(2, 6),), tmp_path / "m.onnx", executorch=True)
    assert list(tmp_path.iterdir()) == []


def test_a_package_that_is_not_installed_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "executorch"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "executorch", None)
    monkeypatch.setattr(runtime_module, "installed_version", lambda name: None)
    with pytest.raises(DeviceError, match=r"executorch is not installed; .*'executorch>="):
        resolve_device("auto", "executorch")
    (line,) = (one for one in environment.examine() if one.name == "--runtime executorch")
    assert line.level == "note" and "pip install 'executorch>=" in line.remedy
    with pytest.raises(InputError, match=r"executorch is not installed; pip install"):
        opdf.export_onnx(nn.Linear(6, 3), (torch.ones(2, 6),), tmp_path / "m.onnx", executorch=True)
