"""A graph that was never folded is as exact and as fast as the student, and is refuted.

The runtime multiplies the cores out when it loads the file, so neither the numbers nor the latency
can tell. Only the file itself shows what it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

import opdf_compile as opdf
from opdf_compile.errors import ExportError, InternalError
from opdf_compile.parity.runtime.registry import resolve_device
from opdf_compile.parity.structure.compare import compare_structure
from opdf_compile.parity.structure.optimised import compare_optimised


@dataclass(frozen=True)
class Files:
    reference: Path
    folded: Path
    unfolded: Path
    expanded: nn.Module


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("never-folded")
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).eval()
    x = torch.randn(4, 64)
    traced = opdf.trace(student, (x,))
    expanded = opdf.expand(traced, opdf.plan(traced, cores=3, min_size=1)).eval()
    folded = opdf.fold(expanded)
    found = Files(
        folder / "reference.onnx", folder / "folded.onnx", folder / "unfolded.onnx", expanded
    )
    opdf.export_onnx(student, (x,), found.reference)
    opdf.export_onnx(folded, (x,), found.folded)
    # torch's own exporter asks no questions; its optimizer would multiply the cores out, too.
    torch.onnx.export(
        expanded,
        (x,),
        str(found.unfolded),
        dynamo=True,
        optimize=False,
        external_data=False,
        verbose=False,
        input_names=["input"],
        output_names=["output"],
        dynamic_shapes={"args": ({0: torch.export.Dim.DYNAMIC},)},
    )
    opdf.write_check_data(folded, found.unfolded, {"input": x.numpy()})
    return found


def test_structure_refutes_it_and_names_the_weights(files: Files) -> None:
    report = opdf.verify(
        files.unfolded, files.reference, device="cpu", only=("structure", "numerics")
    )
    assert report.structure.verdict == "fail" and report.verdict == "fail"
    assert report.exit_code == 1
    named = "\n".join(report.structure.differences)
    assert "'0.weight'" in named and "'2.weight'" in named and "Reshape" in named
    assert report.numerics.verdict == "pass"


def test_the_folded_one_passes(files: Files) -> None:
    assert opdf.verify(files.folded, files.reference, device="cpu", only=("structure", "numerics"))


def test_our_own_export_refuses_it(files: Files, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="weights are still cores.*fold it first"):
        opdf.export_onnx(files.expanded, (torch.randn(4, 64),), tmp_path / "x.onnx")


def test_nothing_is_compared_after_optimisation_where_the_files_differ(files: Files) -> None:
    raw = compare_structure(files.unfolded, files.reference)
    with pytest.raises(InternalError, match="differ already"):
        compare_optimised(raw, files.unfolded, resolve_device("cpu"))


@pytest.mark.slow
def test_its_latency_passes_all_the_same(files: Files) -> None:
    report = opdf.verify(files.unfolded, files.reference, device="cpu", margin=0.2, budget=30.0)
    assert report.structure.verdict == "fail"
    assert report.numerics.verdict == "pass"
    assert report.latency.verdict == "pass", report
    assert report.verdict == "fail"
