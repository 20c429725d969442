"""verify on folded files: right ones pass; a lost branch, a stub and a dropped adapter fail."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from self_folding import Merging, network

import opdf_compile as opdf
from opdf_compile.artefacts.check_file import read_check, write_check
from opdf_compile.artefacts.fold_evidence import FoldRecord, fold_record
from opdf_compile.errors import ArtefactError
from opdf_compile.foreign.folding import FoldedModel
from opdf_compile.parity.report.parity_report import ParityReport

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))
ROWS = torch.randn(4, 6, generator=torch.Generator().manual_seed(2))


def judged(candidate: Path, reference: Path) -> ParityReport:
    return opdf.verify(candidate, reference=reference, only=("structure", "numerics"), device="cpu")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FoldedModel]:
    """A folded file, and the folded untouched student as its reference."""
    folder = tmp_path_factory.mktemp("folds")
    untouched = network()
    folded = opdf.fold_model(untouched, (X,), by="graph")
    folded.save(folder / "reference.onnx")
    trained = network()
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    opdf.fold_model(trained, (X,), by="graph").save(folder / "student.onnx")
    opdf.export_onnx(trained, (X,), folder / "unfolded.onnx")
    return folder, folded


@pytest.mark.slow
def test_a_folded_file_passes_against_the_folded_reference(
    files: tuple[Path, FoldedModel],
) -> None:
    folder, _ = files
    report = judged(folder / "student.onnx", folder / "reference.onnx")
    assert (report.structure.verdict, report.numerics.verdict) == ("pass", "pass")
    data = read_check(folder / "student.check.npz")
    assert data.folded is not None
    assert set(data.folded.untouched.values()) == {
        f"0.{block}.{part}.weight" for block in (2, 3) for part in ("dense", "point")
    }


@pytest.mark.slow
def test_the_evidence_is_of_the_unfolded_model(files: tuple[Path, FoldedModel]) -> None:
    folder, _ = files
    folded, plain = (read_check(folder / f"{n}.check.npz") for n in ("student", "unfolded"))
    for one, two in zip(folded.samples, plain.samples, strict=True):
        assert (one.outputs["output"] == two.outputs["output"]).all()
        assert one.error == two.error


@pytest.mark.slow
def test_a_file_that_was_not_folded_is_refuted(files: tuple[Path, FoldedModel]) -> None:
    folder, _ = files
    shutil.copyfile(folder / "student.check.npz", folder / "claimed.check.npz")
    shutil.copyfile(folder / "unfolded.onnx", folder / "claimed.onnx")
    report = judged(folder / "claimed.onnx", folder / "reference.onnx")
    assert report.verdict == "fail"
    first = report.structure.differences[0]
    assert "the fold did not happen: claimed.onnx still holds '0." in first
    assert "and 3 more as before, which folding by graph changes" in first
    # The sentence is there whatever was asked for.
    alone = opdf.verify(folder / "claimed.onnx", only="numerics", device="cpu")
    assert alone.verdict == "fail"


@pytest.mark.slow
def test_a_forgotten_branch_is_refuted(files: tuple[Path, FoldedModel], tmp_path: Path) -> None:
    folder, folded = files
    damaged = tmp_path / "damaged.onnx"
    weight = folded.program.state_dict["0.3.weight"]
    kept = weight.detach().clone()
    with torch.no_grad():
        norm = network()[0][3].norms[2]
        lost = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        for channel in range(4):
            weight[channel, channel, 1, 1] -= lost[channel]
    folded.save(damaged)
    with torch.no_grad():
        weight.copy_(kept)
    report = judged(damaged, folder / "reference.onnx")
    assert (report.structure.verdict, report.numerics.verdict) == ("pass", "fail")


def test_a_merge_by_another_tool_that_dropped_the_adapters_is_refuted(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Merging()
    opdf.export_onnx(model.base, (ROWS,), tmp_path / "merged.onnx")  # Nothing was added to it.
    folded = opdf.fold_model(model, (ROWS,), by="method")
    given = {"input": ROWS}
    opdf.write_check_data(model, tmp_path / "merged.onnx", given, folded=folded.record)
    report = opdf.verify(tmp_path / "merged.onnx", only="numerics", device="cpu")
    assert (report.structure.verdict, report.numerics.verdict) == ("fail", "fail")
    assert "still holds 'base.0.weight' and 1 more" in report.structure.differences[0]
    assert folded.module is not None
    opdf.export_onnx(folded.module, (ROWS,), tmp_path / "right.onnx")
    opdf.write_check_data(model, tmp_path / "right.onnx", given, folded=folded.record)
    assert opdf.verify(tmp_path / "right.onnx", only="numerics", device="cpu").verdict == "pass"


def test_a_record_names_what_is_gone_and_nothing_else() -> None:
    first, second, third = torch.randn(3, 2, 3).numpy()
    before = {"gone": first, "kept": second, "vector": third[0], "flat": third * 0}
    record = fold_record("graph", before, {"new": third, "kept": second.T})
    assert set(record.untouched.values()) == {"gone"}
    assert len(record.untouched) == 2, "as torch keeps it, and swapped"


@pytest.mark.slow
def test_a_damaged_record_is_bad_input(files: tuple[Path, FoldedModel], tmp_path: Path) -> None:
    folder, _ = files
    for name in ("student.onnx", "student.check.npz"):
        shutil.copyfile(folder / name, tmp_path / name)
    data = read_check(tmp_path / "student.check.npz")
    broken = dataclasses.replace(data, folded=FoldRecord("graph", {"a": 1}))  # type: ignore[dict-item]
    write_check(tmp_path / "student.check.npz", broken)
    with pytest.raises(ArtefactError, match="damaged record of what was folded"):
        opdf.verify(tmp_path / "student.onnx", only="numerics", device="cpu")


def layers() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4)).eval()


def of_weights(student: torch.nn.Module, folder: Path) -> ParityReport:
    """The verdict on a student of a plan of cores."""
    plan = opdf.plan(layers(), cores=2, min_size=1).to_json()
    opdf.export_onnx(student, (ROWS,), folder / "b", reference=layers(), plan=plan)
    return opdf.verify(folder / "b", only="structure,numerics", device="cpu")


def test_planned_weights_that_are_all_the_references_are_refuted(tmp_path: Path) -> None:
    report = of_weights(layers(), tmp_path)
    assert report.verdict == "fail"
    assert "the fold did not happen: all 2 planned weights of student.onnx" in str(
        report.structure.differences
    )


@pytest.mark.slow
def test_planned_weights_of_which_one_moved_pass(tmp_path: Path) -> None:
    student = layers()
    with torch.no_grad():
        student[0].weight[0, 0] += 1e-3  # The others may be at a minimum.
    assert of_weights(student, tmp_path).structure.verdict == "pass"


@pytest.mark.slow
def test_without_a_plan_equal_weights_pass(tmp_path: Path) -> None:
    model = layers()
    opdf.export_onnx(model, (ROWS,), tmp_path / "no-plan", reference=model)
    report = opdf.verify(tmp_path / "no-plan", only="structure,numerics", device="cpu")
    assert report.structure.verdict == "pass"


IMAGE = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(3))


def block() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3, padding=1), torch.nn.BatchNorm2d(4)).eval()


def of_sites(student: torch.nn.Module, folder: Path) -> ParityReport:
    """The verdict on a student of a plan of branches."""
    traced = opdf.trace(block().train(), (IMAGE,))
    plan = opdf.plan(traced, parametrization="repvgg").to_json()
    opdf.export_onnx(student, (IMAGE,), folder / "b", reference=block(), plan=plan)
    return opdf.verify(folder / "b", only="structure,numerics", device="cpu")


def test_sites_of_a_plan_are_looked_at_too(tmp_path: Path) -> None:
    report = of_sites(block(), tmp_path)
    assert report.verdict == "fail"
    assert "the fold did not happen" in str(report.structure.differences)


@pytest.mark.slow
def test_sites_that_were_trained_pass(tmp_path: Path) -> None:
    trained = block()
    with torch.no_grad():
        trained[0].weight[0, 0, 0, 0] += 1e-3
    assert of_sites(trained, tmp_path).structure.verdict == "pass"
