"""Copies of an exported file that a tool rewrote: judged alike, by the original evidence."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn

import opdf_compile as opdf
from opdf_compile.artefacts.check_file import check_path, read_check, write_check
from opdf_compile.artefacts.export_facts import ExportFacts
from opdf_compile.errors import ArtefactError
from opdf_compile.parity.report.parity_report import ParityReport

Rewrite = Callable[[Path], None]
ASKED = "structure,numerics"


def student(scale: float = 1.0) -> nn.Module:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(6)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2.0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 4))
    with torch.no_grad():
        model[0].weight.mul_(scale)
    return model.eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    x = torch.randn(4, 3, 6, 6)
    opdf.export_onnx(student(1.01), (x,), folder / "s.onnx", reference=student())
    return folder


@pytest.fixture
def files(exported: Path, tmp_path: Path) -> tuple[Path, Path]:
    folder = tmp_path / "copy"
    shutil.copytree(exported, folder)
    return folder / "s.onnx", folder / "s.reference.onnx"


def slimmed(path: Path) -> None:
    """The runtime's own optimiser fuses the batch norm and renames what it fused."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    made = path.with_suffix(".made")
    options.optimized_model_filepath = str(made)
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    made.replace(path)


def external(path: Path) -> None:
    onnx.save_model(
        onnx.load(path),
        path,
        save_as_external_data=True,
        location=f"{path.name}.data",
        size_threshold=100,
    )


def inferred(path: Path) -> None:
    """The file keeps its graph and gets other bytes."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    model.doc_string = "shapes inferred"
    onnx.save(model, path)


def doubled(path: Path) -> None:
    """A tool that breaks what it rewrites."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name.endswith("4.weight"):
            array = onnx.numpy_helper.to_array(tensor) * 2
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    onnx.save(model, path)


def stripped(path: Path) -> None:
    """A tool that keeps names and drops metadata."""
    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.save(model, path)


REWRITES = [slimmed, external, inferred, stripped]


def verified(files: tuple[Path, Path]) -> ParityReport:
    return opdf.verify(*files, only=ASKED, device="cpu")


@pytest.mark.parametrize("rewrite", REWRITES)
def test_two_copies_that_were_rewritten_alike_have_parity(
    files: tuple[Path, Path], rewrite: Rewrite
) -> None:
    for path in files:
        rewrite(path)
    report = verified(files)
    assert report and report.exit_code == 0
    assert "both files were rewritten after export" in str(report)


@pytest.mark.parametrize("rewrite", REWRITES)
def test_a_wrong_copy_is_refuted_by_the_original_truth(
    files: tuple[Path, Path], rewrite: Rewrite
) -> None:
    doubled(files[0])
    for path in files:
        rewrite(path)
    report = verified(files)
    assert report.numerics.verdict == "fail" and report.exit_code == 1
    assert report.structure.verdict == "pass"


def test_other_weights_behind_both_hashes_never_pass(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    x = torch.randn(4, 3, 6, 6)
    torch.manual_seed(5)
    opdf.export_onnx(student(1.7), (x,), tmp_path / "other.onnx")
    shutil.copyfile(tmp_path / "other.onnx", files[0])
    inferred(files[1])
    assert verified(files).exit_code == 1


@pytest.mark.parametrize("rewrite", REWRITES)
def test_a_copy_beside_an_original_is_not_checked(
    files: tuple[Path, Path], rewrite: Rewrite
) -> None:
    rewrite(files[0])
    report = opdf.verify(*files, only="numerics", device="cpu")
    assert report.numerics.verdict == "not_checked" and report.exit_code == 4
    text = str(report)
    assert "s.onnx was rewritten after export" in text and "s.reference.onnx was not" in text
    assert "check-data" in text


@pytest.mark.parametrize("beside", [True, False])
def test_a_wrong_copy_alone_is_refuted(files: tuple[Path, Path], beside: bool) -> None:
    doubled(files[0])
    report = opdf.verify(files[0], files[1] if beside else None, only="numerics", device="cpu")
    assert report.numerics.verdict == "fail" and report.exit_code == 1
    assert "s.onnx was rewritten after export" in str(report)


def test_a_copy_alone_is_not_checked(files: tuple[Path, Path]) -> None:
    inferred(files[0])
    report = opdf.verify(files[0], only="numerics", device="cpu")
    assert report.exit_code == 4 and "no reference that was rewritten alike" in str(report)


def test_a_rewritten_reference_without_check_data_judges_nothing(files: tuple[Path, Path]) -> None:
    for path in files:
        inferred(path)
    check_path(files[1]).unlink()
    report = opdf.verify(*files, only="numerics", device="cpu")
    assert report.exit_code == 4 and "s.reference.onnx has no check data" in str(report)


def test_the_references_check_data_may_lie_elsewhere(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    moved = []
    for path in files:
        moved.append(tmp_path / f"slim.{path.name}")
        shutil.copyfile(path, moved[-1])
        inferred(moved[-1])
    checks = {"check": check_path(files[0]), "reference_check": check_path(files[1])}
    assert opdf.verify(*moved, only="numerics", device="cpu", **checks)
    with pytest.raises(ArtefactError, match="does not exist"):
        opdf.verify(*moved, only="numerics", device="cpu", reference_check="none.check.npz")


def test_a_tool_that_moves_the_numbers_of_both_refutes_nobody(files: tuple[Path, Path]) -> None:
    for path in files:
        doubled(path)
    report = verified(files)
    assert report.numerics.verdict == "not_checked" and report.exit_code == 4
    assert "the reference that was rewritten too is off its own truth" in str(report)


def test_a_rewritten_reference_alone_changes_nothing(files: tuple[Path, Path]) -> None:
    inferred(files[1])
    assert verified(files).exit_code == 0


def renamed(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.input[:] = ["image" if name == "input" else name for name in node.input]
    model.graph.input[0].name = "image"


def narrowed(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3


def output_narrowed(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 9


def half(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (renamed, "it was written for the inputs input, the file has image"),
        (narrowed, r"its input 'input' has the shape \(4, 3, 6, 6\), the file's is \(3, 3, 6, 6\)"),
        (output_narrowed, r"its output 'output' has the shape \(4, 4\)"),
        (half, "its input 'input' has the dtype float32, the file's is"),
    ],
)
@pytest.mark.parametrize("side", [0, 1])
def test_check_data_that_does_not_fit_is_bad_input(
    files: tuple[Path, Path], change: Callable[[onnx.ModelProto], None], sentence: str, side: int
) -> None:
    model = onnx.load(files[side])
    change(model)
    onnx.save(model, files[side])
    with pytest.raises(ArtefactError, match=f"does not fit .*: {sentence}.*check-data"):
        opdf.verify(*files, only="numerics", device="cpu")


def test_the_record_that_lost_its_parameters_is_told(files: tuple[Path, Path]) -> None:
    slimmed(files[0])
    slimmed(files[1])
    report = verified(files)
    assert report.structure.verdict == "pass"
    notes = [n for n in report.environment["notes"] if "parameters that its record" in n]
    assert len(notes) == 2 and "s.onnx was rewritten after export: it lacks" in notes[0]
    assert "their values were not compared" in str(report)


def test_a_slimmed_candidate_differs_from_an_untouched_reference(files: tuple[Path, Path]) -> None:
    slimmed(files[0])
    report = opdf.verify(*files, only="structure", device="cpu")
    assert report.exit_code == 1 and "rewrite both with the same tool" in str(report)


def test_a_constant_that_is_no_parameter_is_compared_while_the_record_holds(
    files: tuple[Path, Path],
) -> None:
    """The rule without a record is weaker, so only a broken record may lead to it."""
    for path in files:
        inferred(path)
    notes = str(verified(files))
    assert "its record" not in notes and "were not compared" not in notes


def without_its_facts(check: Path) -> None:
    """Check data as version 0.1 wrote it."""
    write_check(check, dataclasses.replace(read_check(check), facts=ExportFacts()))


def with_factor(path: Path, value: float) -> None:
    """A factor that is no parameter stands before the output."""
    model = onnx.load(path)
    model.graph.node[-1].output[0] = "before"
    factor = np.full(4, value, np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(factor, "factor"))
    model.graph.node.append(onnx.helper.make_node("Mul", ["before", "factor"], ["output"]))
    onnx.save(model, path)


@pytest.mark.parametrize("sides", [(0,), (1,), (0, 1)], ids=str)
@pytest.mark.parametrize("facts", [True, False])
def test_the_parameters_of_a_file_that_lost_its_record(
    files: tuple[Path, Path], sides: tuple[int, ...], facts: bool
) -> None:
    """The check data has them, or the other file; else what looks like a parameter is one."""
    for path, value in zip(files, (2.0, 3.0), strict=True):
        with_factor(path, value)
        if not facts:
            without_its_facts(check_path(path))
    for side in sides:
        stripped(files[side])
    report = opdf.verify(*files, only="structure", device="cpu")
    known = facts or len(sides) == 1
    assert report.structure.verdict == ("fail" if known else "pass")
    notes = str(report.environment["notes"])
    assert ("check.npz has it" in notes) == facts
    assert ("were not compared" in notes) == (not known)


def test_one_weight_that_changed_after_the_rewriting_is_refuted(files: tuple[Path, Path]) -> None:
    for path in files:
        slimmed(path)
    doubled(files[0])
    report = verified(files)
    assert (report.structure.verdict, report.numerics.verdict) == ("pass", "fail")


def test_a_tool_that_changed_the_reference_only_is_told(files: tuple[Path, Path]) -> None:
    slimmed(files[1])
    report = verified(files)
    assert (report.structure.verdict, report.numerics.verdict) == ("fail", "pass")
    sentence = "s.reference.onnx was rewritten after export and s.onnx was not"
    assert sentence in str(report.environment["notes"])


def test_renamed_outputs_have_a_clear_sentence(files: tuple[Path, Path]) -> None:
    for path in files:
        model = onnx.load(path)
        model.graph.node[-1].output[0] = model.graph.output[0].name = "logits"
        onnx.save(model, path)
    with pytest.raises(ArtefactError, match="have it keep the names of its outputs"):
        verified(files)


def two_inputs(folder: Path) -> tuple[Path, Path]:
    class Difference(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
            return self.layer(left) - right

    args = (torch.randn(4, 3), torch.randn(4, 3))
    opdf.export_onnx(Difference(), args, folder / "s.onnx", reference=Difference())
    return folder / "s.onnx", folder / "s.reference.onnx"


def turned(path: Path) -> None:
    model = onnx.load(path)
    inputs = list(model.graph.input)[::-1]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    onnx.save(model, path)


def test_inputs_that_a_tool_reordered_are_matched_by_name(tmp_path: Path) -> None:
    pair = two_inputs(tmp_path)
    for path in pair:
        turned(path)
    assert verified(pair)
    turned(pair[1])
    report = verified(pair)
    assert report.structure.verdict == "fail" and "left" in report.structure.differences[0]
    assert report.numerics.verdict in ("pass", "not_checked")


# Half precision by another tool: onnxruntime's own function, which CI has.


def halved(path: Path, *, keep: bool) -> None:
    float16 = pytest.importorskip(
        "onnxruntime.transformers.float16", reason="this build of onnxruntime has no float16 tool"
    )
    made = float16.convert_float_to_float16(onnx.load(path), keep_io_types=keep)
    onnx.save(made, path)


@pytest.mark.parametrize("keep", [True, False], ids=["float32 inputs", "float16 inputs"])
def test_a_pair_in_half_precision_is_judged_by_its_own_floor(
    files: tuple[Path, Path], keep: bool
) -> None:
    for path in files:
        halved(path, keep=keep)
    report = verified(files)
    assert report and "they are float16 now" in str(report.environment["notes"])
    precision = report.numerics.precision
    assert precision is not None and precision.dtype == precision.reference_dtype == "float16"
    # An error of a float16 sum, far above the floor of the float32 export.
    assert 1e-6 < report.numerics.max_rel_error < 1e-2


@pytest.mark.parametrize("keep", [True, False], ids=["float32 inputs", "float16 inputs"])
def test_a_wrong_weight_in_half_precision_is_refuted(files: tuple[Path, Path], keep: bool) -> None:
    doubled(files[0])
    for path in files:
        halved(path, keep=keep)
    report = verified(files)
    assert (report.structure.verdict, report.numerics.verdict) == ("pass", "fail")


def test_half_precision_of_one_side_alone_is_not_checked(files: tuple[Path, Path]) -> None:
    halved(files[0], keep=False)
    report = opdf.verify(*files, only="numerics", device="cpu")
    assert report.numerics.verdict == "not_checked" and report.exit_code == 4


def test_latency_takes_inputs_in_the_files_own_precision(files: tuple[Path, Path]) -> None:
    for path in files:
        halved(path, keep=False)
    report = opdf.verify(*files, only="latency", device="cpu", budget=1.0)
    assert report.latency.verdict != "not_asked"


def test_a_bundle_whose_models_a_tool_rewrote_in_place(tmp_path: Path) -> None:
    x = torch.randn(4, 3, 6, 6)
    opdf.export_onnx(student(1.01), (x,), tmp_path / "b", reference=student())
    models = tmp_path / "b" / "student.onnx", tmp_path / "b" / "reference" / "reference.onnx"
    for path in models:
        slimmed(path)
    report = opdf.verify(tmp_path / "b", only=ASKED, device="cpu")
    assert report.exit_code == 1
    assert "verify them as a pair of files" in report.structure.differences[0]
    # As a pair they are what a tool made of both, and are judged so.
    assert verified(models)
    models[1].write_bytes(models[0].read_bytes())
    check_path(models[0]).write_bytes(b"")
    sentence = str(opdf.verify(tmp_path / "b", only="structure", device="cpu").structure)
    assert "pair of files" not in sentence
