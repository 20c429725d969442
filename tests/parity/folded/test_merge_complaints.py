"""What people met whose merge was a stub, with small models of our own, in every runtime.

A merge tool wrote the base model's own bytes and called it merged (verl-project/verl #7285, asked
about in #3087 and #4553). The same with branches: a `switch_to_deploy` that does nothing. A wrong
file is refuted with its sentence, a right one passes, whatever runs them.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from every_runtime import everywhere, processor
from self_folding import Merging, network

import opdf_compile as opdf
from opdf_compile.artefacts import check_path
from opdf_compile.parity.report.parity_report import ParityReport

ROWS = torch.randn(4, 6, generator=torch.Generator().manual_seed(2))
IMAGES = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base.onnx; merged.onnx and stub.onnx with the evidence of the model with its adapters."""
    folder = tmp_path_factory.mktemp("adapters")
    torch.manual_seed(0)
    trained = Merging()
    folded = opdf.fold_model(trained, (ROWS,), by="method")
    opdf.export_onnx(trained.base, (ROWS,), folder / "base.onnx")
    assert folded.module is not None
    opdf.export_onnx(folded.module, (ROWS,), folder / "merged.onnx")
    shutil.copyfile(folder / "base.onnx", folder / "stub.onnx")
    # Somebody who knows of the fold leaves its record; for "plain" nobody did.
    shutil.copyfile(folder / "base.onnx", folder / "plain.onnx")
    for name, record in (("merged", folded.record), ("stub", folded.record), ("plain", None)):
        given = {"input": ROWS.numpy()}
        opdf.write_check_data(trained, folder / f"{name}.onnx", given, folded=record)
    return folder


def judged(folder: Path, name: str, runtime: str, reference: str) -> ParityReport:
    return opdf.verify(
        folder / f"{name}.onnx",
        folder / f"{reference}.onnx",
        only="structure,numerics",
        runtime=runtime,
        device=processor(runtime),
    )


@everywhere
def test_a_merge_that_wrote_the_base_is_refuted(adapters: Path, runtime: str) -> None:
    report = judged(adapters, "stub", runtime, "base")
    assert (report.structure.verdict, report.numerics.verdict) == ("fail", "fail")
    assert report.structure.differences[0].startswith(
        "the fold did not happen: stub.onnx still holds 'base.0.weight' and 1 more as before"
    )
    assert "stub.onnx and base.onnx are the same file" in str(report.environment["notes"])


@everywhere
def test_its_numbers_alone_refute_it(adapters: Path, runtime: str) -> None:
    report = judged(adapters, "plain", runtime, "base")
    assert (report.structure.verdict, report.numerics.verdict) == ("pass", "fail")
    assert report.exit_code == 1


@everywhere
def test_a_merge_that_happened_passes(adapters: Path, runtime: str) -> None:
    assert judged(adapters, "merged", runtime, "base")


@everywhere
def test_a_bundle_of_a_merge_that_wrote_the_base_is_refuted(
    adapters: Path, runtime: str, tmp_path: Path
) -> None:
    """The evidence is of the stub itself, so only the claim can tell."""
    base = Merging().base
    plan = opdf.plan(base, cores=2, min_size=1).to_json()
    opdf.export_onnx(base, (ROWS,), tmp_path / "b", reference=base, plan=plan)
    report = opdf.verify(
        tmp_path / "b", only="structure,numerics", runtime=runtime, device=processor(runtime)
    )
    assert (report.structure.verdict, report.numerics.verdict) == ("fail", "pass")
    assert "the fold did not happen: all 2 planned weights" in report.structure.differences[0]


@pytest.fixture(scope="module")
def branches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """folded.onnx, and stub.onnx with all branches and the evidence of a folded file."""
    folder = tmp_path_factory.mktemp("branches")
    model = network()
    opdf.fold_model(model, (IMAGES,), by="graph").save(folder / "folded.onnx")
    opdf.export_onnx(model, (IMAGES,), folder / "stub.onnx")
    shutil.copyfile(check_path(folder / "folded.onnx"), check_path(folder / "stub.onnx"))
    untouched = opdf.fold_model(network(), (IMAGES,), by="graph")
    untouched.save(folder / "reference.onnx")
    return folder


@pytest.mark.slow
@everywhere
def test_a_deployment_that_kept_its_branches_is_refuted(branches: Path, runtime: str) -> None:
    """Its numbers are right, and only slower."""
    report = judged(branches, "stub", runtime, "reference")
    assert report.structure.verdict == "fail" and report.exit_code == 1
    assert report.structure.differences[0].startswith("the fold did not happen: stub.onnx")


@pytest.mark.slow
@everywhere
def test_a_deployment_that_folded_passes(branches: Path, runtime: str) -> None:
    assert judged(branches, "folded", runtime, "reference")
