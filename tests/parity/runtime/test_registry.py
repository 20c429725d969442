"""Runtimes by name: built in, added by an entry point, unknown, broken, and what reports say."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import nn

import opdf_compile as opdf
from opdf_compile.cli import environment, main
from opdf_compile.errors import DeviceError, InputError
from opdf_compile.parity.model_file import PathLike
from opdf_compile.parity.runtime import registry
from opdf_compile.parity.runtime.ort.runtime import OnnxRuntime
from opdf_compile.parity.runtime.protocol import (
    Device,
    Missing,
    RunFailed,
    Runtime,
    seconds_per_run,
)
from opdf_compile.parity.runtime.registry import resolve_device, runtime_names, runtime_of


class Bound:
    def __init__(self, run: Callable[[], Any]) -> None:
        self.run = run

    def seconds(self, runs: int) -> float:
        return seconds_per_run(self.run, runs)


class Evaluated:
    """onnx's own reference evaluator; it says that it computes in what it was told to say."""

    on_cpu = True

    def __init__(self, model: PathLike, precision: str) -> None:
        self._evaluator = ReferenceEvaluator(onnx.load(model))
        self.input_names = tuple(self._evaluator.input_names)
        self.output_names = tuple(self._evaluator.output_names)
        self.precision = precision

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        return dict(zip(self.output_names, self._evaluator.run(None, dict(inputs)), strict=True))

    def bind(self, inputs: Mapping[str, Any]) -> Bound:
        return Bound(lambda: self(inputs))


class Reference:
    """A runtime that inherits nothing."""

    name = "reference"
    unoptimised = ""
    computes_in = "f32"

    def version(self) -> str:
        return "7.1"

    def devices(self) -> tuple[str, ...]:
        return ("cpu", "tpu")

    def missing(self, device: str) -> Missing | None:
        return Missing("there is no TPU", "buy one") if device == "tpu" else None

    def resolve(self, device: str) -> Device:
        return Device("cpu", "numpy", runtime=self, precision="f32")

    def load(self, model: PathLike, device: Device, **options: Any) -> Evaluated:
        return Evaluated(model, self.computes_in)

    def write_graph(self, source: PathLike, target: Path, device: Device) -> None:
        raise DeviceError("reference does not tell what it runs")


class Rounding(Reference):
    """It ignores the precision that it is asked for."""

    computes_in = "bf16"


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Installs a package with one entry point: a module's member, or a module that is missing."""

    def install(member: object | None) -> None:
        if member is not None:
            module = ModuleType("added_runtime")
            module.made = member  # type: ignore[attr-defined]
            monkeypatch.setitem(sys.modules, "added_runtime", module)
        point = EntryPoint("reference", "added_runtime:made", registry.GROUP)
        points = SimpleNamespace(entry_points=lambda *, group: [point], EntryPoint=EntryPoint)
        monkeypatch.setattr(registry, "metadata", points)

    return install


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    folder = tmp_path_factory.mktemp("runtimes") / "bundle"
    opdf.export_onnx(student, (torch.randn(4, 6),), folder, reference=student)
    return folder


def test_the_built_in_ones_satisfy_the_protocol() -> None:
    assert runtime_names()[:2] == ("onnxruntime", "openvino")
    for name in registry.BUILT_IN:
        assert isinstance(runtime_of(name), Runtime) and runtime_of(name).name == name
    assert not isinstance(object(), Runtime)


@pytest.mark.parametrize("member", [Reference, Reference()], ids=["class", "object"])
def test_an_entry_point_is_a_runtime(member: object, added: Callable[..., None]) -> None:
    added(member)
    assert runtime_names() == (*registry.BUILT_IN, "reference")
    assert resolve_device("auto", "reference").runtime.name == "reference"


def test_every_part_runs_in_an_added_runtime(bundle: Path, added: Callable[..., None]) -> None:
    added(Reference)
    report = opdf.verify(bundle, runtime="reference", margin=1.0, budget=0.5)
    assert report.numerics.verdict == "pass"
    assert report.structure.optimised is not None
    assert report.structure.optimised.differences == ("reference does not tell what it runs",)
    assert (report.latency.device, report.latency.provider) == ("cpu", "numpy")
    assert report.environment["runtime"] == {
        **{"name": "reference", "version": "7.1"},
        **{"precision": "f32", "precision_asked": "f32"},
    }
    assert report.environment["versions"]["reference"] == "7.1"
    assert "onnxruntime" in report.environment["versions"]
    assert "reference 7.1, computing in f32" in str(report)
    assert not any("asked to compute" in note for note in report.environment["notes"])


def test_a_precision_that_was_ignored_is_told(bundle: Path, added: Callable[..., None]) -> None:
    added(Rounding)
    report = opdf.verify(bundle, runtime="reference", only="numerics")
    assert report.environment["runtime"]["precision"] == "bf16"
    (note,) = (note for note in report.environment["notes"] if "asked to compute" in note)
    assert "reference was asked to compute in f32 and says that it computes in bf16" in note
    assert note in str(report)


class Parting(Reference):
    """It leaves an operator to another device."""

    def load(self, model: PathLike, device: Device, **options: Any) -> Evaluated:
        loaded = super().load(model, device)
        loaded.fallback = "of 3 operators 1 on the CPU (Gemm)"  # type: ignore[attr-defined]
        return loaded


def test_what_runs_elsewhere_is_told(bundle: Path, added: Callable[..., None]) -> None:
    added(Parting)
    report = opdf.verify(bundle, runtime="reference", only="numerics")
    note = "cpu does not run all of it: of 3 operators 1 on the CPU (Gemm)"
    assert note in report.environment["notes"] and note in str(report)


class Doubled(Evaluated):
    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        return {name: 2 * value for name, value in super().__call__(inputs).items()}


class Cut(Evaluated):
    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        return {name: value[:, :1] for name, value in super().__call__(inputs).items()}


class Stopping(Evaluated):
    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        raise RunFailed("reference", "a model", ValueError("no such kernel"))


@pytest.mark.parametrize(
    ("model", "precision", "words"),
    [
        (Doubled, "f32", "computes another function of it"),
        (Cut, "f32", "computes another function of it"),
        (Doubled, "f16", "computes it in f16"),
        (Stopping, "f32", "does not compute it"),
    ],
)
def test_a_note_says_that_the_runtime_is_wrong_and_not_the_file(
    model: type[Evaluated],
    precision: str,
    words: str,
    bundle: Path,
    added: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Wrong(Reference):
        def resolve(self, device: str) -> Device:
            return Device("cpu", "numpy", runtime=self, precision=precision)

        def load(self, path: PathLike, device: Device, **options: Any) -> Evaluated:
            return model(path, precision)

    added(Wrong)
    found = opdf.verify(bundle, runtime="reference", only="numerics").numerics
    assert found.verdict == "fail"
    (note,) = (note for note in found.notes if note.startswith("the file is right in onnxruntime"))
    assert f"reference 7.1 {words}: ship it to another runtime" in note
    # Without the default runtime nothing is known, and nothing said.
    monkeypatch.setattr(OnnxRuntime, "missing", lambda self, device: Missing("none", "none"))
    found = opdf.verify(bundle, runtime="reference", only="numerics").numerics
    assert found.verdict == "fail" and not any("is right in" in note for note in found.notes)


def test_the_default_is_told_as_before(bundle: Path) -> None:
    report = opdf.verify(bundle, only="numerics", device="cpu")
    found = OnnxRuntime().version()
    assert report.environment["runtime"] == {
        **{"name": "onnxruntime", "version": found},
        **{"precision": "", "precision_asked": ""},
    }
    assert str(report).endswith(f"device cpu (asked for), onnxruntime {found}")


class NoConstructor:
    def __init__(self) -> None:
        raise OSError("libthing.so: cannot open")


@pytest.mark.parametrize(
    ("member", "words"),
    [
        (None, r"'reference' cannot be loaded from added_runtime:made \(ModuleNotFoundError"),
        (NoConstructor, r"cannot be loaded .*\(OSError: libthing.so: cannot open\); mend or"),
        (object(), "'reference' from added_runtime:made lacks devices, load, missing, name"),
    ],
    ids=["no module", "raises", "no runtime"],
)
def test_a_broken_entry_point_is_one_sentence_when_asked_for(
    member: object, words: str, added: Callable[..., None]
) -> None:
    added(member)
    assert resolve_device("cpu").runtime.name == "onnxruntime"
    with pytest.raises(InputError, match=words) as caught:
        resolve_device("auto", "reference")
    assert "give another --runtime" in str(caught.value)
    (line,) = (found for found in environment.examine() if found.name == "--runtime reference")
    assert line.level == "note"


def test_doctor_lists_added_runtimes(added: Callable[..., None]) -> None:
    added(Reference)
    (line,) = (found for found in environment.examine() if found.name == "--runtime reference")
    assert (line.found, line.level) == ("7.1 (cpu, tpu not available: there is no TPU)", "ok")


class Raising(Reference):
    """Installed, and broken where it looks at its devices."""

    def missing(self, device: str) -> Missing | None:
        raise RuntimeError("the plugin does not fit")


def test_doctor_outlives_a_runtime_that_raises(added: Callable[..., None]) -> None:
    added(Raising)
    (line,) = (found for found in environment.examine() if found.name == "--runtime reference")
    assert "the plugin does not fit" in line.found and line.level == "note"


def test_a_runtime_that_calls_itself_otherwise_is_refused(added: Callable[..., None]) -> None:
    class Posing(Reference):
        name = "onnxruntime"

    added(Posing)
    with pytest.raises(InputError, match="'reference' .* calls itself 'onnxruntime'; mend or un"):
        resolve_device("auto", "reference")


@pytest.mark.parametrize(
    ("device", "runtime", "words"),
    [
        ("auto", "onnxruntim", r"unknown \(did you mean 'onnxruntime'\?\); give one of onnxr"),
        ("auto", "zzz", "'zzz' is unknown; give one of onnxruntime, openvino"),
        ("cuda", "onnxruntime:cpu", "the device 'cpu' and --device 'cuda'; give one of them"),
        ("auto", "onnxruntime:", "names no device behind the colon; give 'onnxruntime'"),
        ("auto", ":", "names no runtime before the colon; give onnxruntime:cpu"),
        ("auto", ":cuda", "names no runtime before the colon; give onnxruntime:cuda"),
        ("auto", "onnxruntime:tpu", "'tpu' is unknown; give auto, cpu or cuda"),
        ("auto", None, "runtime is None; give NAME or NAME:DEVICE"),
    ],
)
def test_words_without_a_meaning(device: str, runtime: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        resolve_device(device, runtime)


def test_a_device_may_be_named_in_both_places_alike() -> None:
    assert resolve_device("cpu", "onnxruntime:cpu").name == "cpu"
    assert resolve_device("auto", "onnxruntime:cpu").chosen_because == "asked for"


def test_the_command_line_knows_the_option(
    bundle: Path, added: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    added(Reference)
    words = ["verify", str(bundle), "--only", "numerics", "--json", "-", "--runtime"]
    assert main([*words, "reference"]) == 0
    assert json.loads(capsys.readouterr().out)["environment"]["runtime"]["name"] == "reference"
    assert main([*words, "referense"]) == 2
    assert "did you mean 'reference'?" in capsys.readouterr().err
