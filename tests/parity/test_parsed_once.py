"""However many parts of a verification look into a file, it is parsed, checked and hashed once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

import opdf_compile as opdf
from opdf_compile.artefacts import bundle as bundles
from opdf_compile.artefacts import onnx_file
from opdf_compile.files import sha256
from opdf_compile.parity import model_file
from opdf_compile.parity.model_file import ModelFile
from opdf_compile.parity.structure import compare


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    folder = tmp_path_factory.mktemp("parsed") / "bundle"
    opdf.export_onnx(student, (torch.randn(4, 6),), folder, reference=student)
    return folder


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file was parsed, by its name."""
    found: Counter[str] = Counter()

    def counted(model: onnx.ModelProto, file: Path) -> None:
        found[file.name] += 1

    monkeypatch.setattr(onnx_file, "check_calls", counted)
    return found


def test_structure_and_numerics(bundle: Path, parsed: Counter[str]) -> None:
    assert opdf.verify(bundle, only="structure,numerics", device="cpu")
    runtime = {"candidate.optimised.onnx": 1, "reference.optimised.onnx": 1}
    assert parsed == {"student.onnx": 1, "reference.onnx": 1, **runtime}


def test_every_part(bundle: Path, parsed: Counter[str]) -> None:
    opdf.verify(bundle, device="cpu", budget=0.1)
    assert parsed["student.onnx"] == parsed["reference.onnx"] == 1


def test_a_copy_that_was_rewritten(bundle: Path, parsed: Counter[str], tmp_path: Path) -> None:
    """Its interface is compared with the check data, too."""
    model = onnx.load(bundle / "student.onnx")
    model.doc_string = "rewritten"
    onnx.save(model, tmp_path / "copy.onnx")
    report = opdf.verify(
        tmp_path / "copy.onnx", check=bundle / "student.check.npz", only="numerics", device="cpu"
    )
    assert report.exit_code == 4
    assert parsed == {"copy.onnx": 1}


def test_a_model_is_hashed_once(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For numerics and for the report."""
    calls: list[object] = []
    monkeypatch.setattr(model_file, "sha256", counting(model_file.sha256, calls))
    files = (bundle / "student.onnx", bundle / "reference" / "reference.onnx")
    report = opdf.verify(*files, only="structure,numerics", device="cpu")
    assert report and all(report.files[file.name]["sha256"] == sha256(file) for file in files)
    assert {file: calls.count((file,)) for file in files} == dict.fromkeys(files, 1)


def test_a_file_of_a_bundle_is_hashed_once(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the manifest, for the fold and for the report: it may have gigabytes."""
    calls: list[object] = []
    for module in (model_file, bundles):
        monkeypatch.setattr(module, "sha256", counting(sha256, calls))
    report = opdf.verify(bundle, only="structure,numerics", device="cpu")
    hashed = [Path(str(call[0])).name for call in calls if isinstance(call, tuple)]
    assert sorted(hashed) == sorted(report.files)
    for name, entry in report.files.items():
        assert entry["sha256"] == sha256(next(bundle.rglob(name)))


def counting(function: Callable[..., object], calls: list[object]) -> Callable[..., object]:
    def call(*args: object) -> object:
        calls.append(args)
        return function(*args)

    return call


def test_the_raw_graphs_are_compared_once(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    monkeypatch.setattr(compare, "compare_views", counting(compare.compare_views, calls))
    assert opdf.verify(bundle, only="structure", device="cpu")
    # The graphs in the files, and what the runtime made of them.
    assert len(calls) == 2


def test_a_file_is_the_same_however_it_is_named(bundle: Path) -> None:
    file = ModelFile(bundle / "student.onnx")
    assert ModelFile.of(file) is file and ModelFile.of(str(file)).path == file.path
    assert file.view is file.view and file.model is file.view.proto
    assert [port.name for port in file.interface.inputs] == [i.name for i in file.model.graph.input]
