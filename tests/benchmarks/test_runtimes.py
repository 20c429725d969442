"""Students in runtimes: a cell that runs, one that is refused, one whose process ends; the page."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from exports import cell, runtimes_page
from torch import nn

import opdf_compile as opdf
from opdf_compile.parity.runtime import registry
from opdf_compile.parity.runtime.ort.runtime import OnnxRuntime

ROOT = Path(__file__).parents[2]
BATCHES = (1, 3, 8)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    folder = tmp_path_factory.mktemp("students") / "bundle"
    opdf.export_onnx(student, (torch.randn(4, 6),), folder, reference=student)
    return folder


class Doubling(OnnxRuntime):
    """Right at the first size that it sees, and twice as much at every other."""

    name = "doubling"

    def load(self, *words: Any, **options: Any) -> Any:
        model = super().load(*words, **options)
        run, first = model.__call__, []

        class Doubled:
            input_names, output_names = model.input_names, model.output_names
            on_cpu, precision = True, ""

            def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
                rows = len(next(iter(inputs.values())))
                first.append(rows)
                factor = 1 if rows == first[0] else 2
                return {name: factor * value for name, value in run(inputs).items()}

        return Doubled()


def row_of(name: str, bundle: Path) -> dict[str, Any]:
    lines = [json.dumps(found) for found in cell.steps(name, bundle, BATCHES)]
    return {"model": "tiny", "runtime": name, **cell.collected(lines, 0)}


def test_a_right_runtime(bundle: Path) -> None:
    row = row_of("onnxruntime", bundle)
    assert row["verdict"] == "pass" and not row["sentences"] and row["version"]
    assert list(row["batches"]) == ["1", "3", "8"]
    assert all(entry["error"] < 1e-6 for entry in row["batches"].values())
    assert runtimes_page.free_batch(row) == "yes"
    assert "e-0" in runtimes_page.batch_words(row)


def test_a_batch_that_changes_the_numbers(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.BUILT_IN, Doubling.name, Doubling)
    row = row_of(Doubling.name, bundle)
    assert row["batches"]["1"]["error"] < 1e-6
    assert row["batches"]["3"]["error"] == pytest.approx(1)
    assert row["verdict"] == "fail" and "is right in onnxruntime" in row["sentences"][-1]
    assert runtimes_page.free_batch(row) == "no"
    assert runtimes_page.batch_words(row) == "100% off"


def test_a_refusal_names_no_folder(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / cell.FILE).write_bytes(b"\x08\x07")
    row = row_of("onnxruntime", tmp_path)
    assert cell.FILE in row["refused"] and str(tmp_path) not in row["refused"]
    assert runtimes_page.batch_words(row) == "refused" and runtimes_page.free_batch(row) == "-"


def test_a_process_that_ends_keeps_what_it_found(bundle: Path) -> None:
    lines = [json.dumps(found) for found in cell.steps("onnxruntime", bundle, (1,))][:2]
    row = {"model": "tiny", "runtime": "onnxruntime", **cell.collected(lines, -11)}
    assert row["ended"] == "it ends the process with signal 11 after 1 of the batch sizes"
    assert runtimes_page.batch_words(row) == "ends the process"
    assert runtimes_page.free_batch(row) == "no"
    assert "at load" in cell.collected([], 3)["ended"]


@pytest.mark.slow
def test_the_benchmark_runs(bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "runtimes.json"
    words = ["--models", "tiny", "--only", "onnxruntime", "--json", str(path)]
    assert importlib.import_module("runtimes").main(words) == 0
    value = json.loads(path.read_text(encoding="utf-8"))
    (row,) = value["rows"]
    assert value["schema"] == "opdf-runtimes/1" and row["verdict"] == "pass"
    assert str(tmp_path) not in path.read_text(encoding="utf-8")
    assert "`onnxruntime`" in runtimes_page.tables_of(value)["runtimes-errors"]


def test_the_page_is_that_of_the_json() -> None:
    value = json.loads(runtimes_page.RESULTS.read_text(encoding="utf-8"))
    written = (ROOT / "docs" / "runtimes.md").read_text(encoding="utf-8")
    for name, lines in runtimes_page.tables_of(value).items():
        place = f"<!-- table: {name} -->\n\n{lines}\n\n<!-- end -->"
        assert place in written, "run: python benchmarks/runtimes.py --page docs/runtimes.md"
