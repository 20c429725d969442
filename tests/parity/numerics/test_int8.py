"""A quantised pair: what int8 costs the untouched student is what it may cost the candidate."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from quantised_pairs import (
    TOOLS,
    Tool,
    Weights,
    inputs,
    qdq,
    trained,
    truth,
    untouched,
    widened,
    write,
)

import opdf_compile as opdf
from opdf_compile.artefacts import check_path, drop_of
from opdf_compile.files import sha256
from opdf_compile.parity.numerics.int8_budget import allowed_factor, spread_of

RUNTIMES = [
    "onnxruntime:cpu",
    pytest.param(
        "openvino:cpu",
        marks=pytest.mark.skipif(
            importlib.util.find_spec("openvino") is None,
            reason="openvino is not installed; the extra openvino brings it",
        ),
    ),
]


def verified(
    folder: Path,
    candidate: Weights,
    reference: Weights,
    tool: Tool = qdq,
    change: Callable[[Path], None] = lambda _path: None,
    runtime: str = "onnxruntime:cpu",
) -> opdf.ParityReport:
    files = write(folder / "s.onnx", candidate), write(folder / "r.onnx", reference)
    for file in files:
        tool(file)
    change(files[0])
    return opdf.verify(*files, only="structure,numerics", runtime=runtime)


@pytest.mark.parametrize("tool", TOOLS)
def test_a_pair_that_any_tool_quantised_alike_has_parity(tmp_path: Path, tool: Tool) -> None:
    report = verified(tmp_path, trained(untouched()), untouched(), tool)
    assert report and report.exit_code == 0
    text = str(report)
    assert "both files are quantised (" in text and "by dtype and shape, not by value" in text
    assert "compared with the float64 truth of the float32 student" in text
    assert "both files were rewritten after export" in text
    (dropped,) = report.numerics.drops
    assert dropped.reference is not None
    assert 0 < dropped.candidate.relative_rms < 0.05 and 0 < dropped.reference.relative_rms < 0.05


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_student_that_int8_breaks_is_refuted_where_the_untouched_one_holds(
    tmp_path: Path, runtime: str
) -> None:
    candidate = widened(trained(untouched()), 300.0)
    files = write(tmp_path / "s.onnx", candidate), write(tmp_path / "r.onnx", untouched())
    # In float32 it is right: the function is that of the student before it was widened.
    assert opdf.verify(*files, only="structure,numerics", runtime=runtime)
    for file in files:
        qdq(file)
    report = opdf.verify(*files, only="structure,numerics", runtime=runtime)
    assert report.structure.verdict == "pass"
    assert report.numerics.verdict == "fail" and report.exit_code == 1
    assert "int8 breaks the candidate and not the untouched student" in report.numerics.reason
    assert report.numerics.drops[0].candidate.relative_rms > 0.2
    (reference,) = (dropped.reference for dropped in report.numerics.drops)
    assert reference is not None and reference.relative_rms < 0.05


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_pair_quantised_alike_has_parity_in_each_runtime(tmp_path: Path, runtime: str) -> None:
    assert verified(tmp_path, trained(untouched()), untouched(), runtime=runtime)


def scaled(share: float, which: str = "last.weight_scale") -> Callable[[Path], None]:
    """One quantised weight off by a share of itself."""

    def change(path: Path) -> None:
        model = onnx.load(path)
        (found,) = (t for t in model.graph.initializer if t.name == which)
        values = numpy_helper.to_array(found) * np.float32(1 + share)
        found.CopyFrom(numpy_helper.from_array(values, which))
        onnx.save(model, path)

    return change


@pytest.mark.parametrize("which", ["first.weight_scale", "last.weight_scale"])
def test_one_weight_that_is_off_is_refuted(tmp_path: Path, which: str) -> None:
    """The budget is some times 1 % here: what is off by less drowns in int8's own error."""
    report = verified(tmp_path, untouched(), untouched(), change=scaled(0.3, which))
    assert report.structure.verdict == "pass" and report.numerics.verdict == "fail"


def test_one_output_channel_that_is_off_is_refuted_by_its_largest_error(tmp_path: Path) -> None:
    def change(path: Path) -> None:
        model = onnx.load(path)
        (found,) = (t for t in model.graph.initializer if t.name == "last.weight_quantized")
        values = numpy_helper.to_array(found).copy()
        values[:, 2] = -values[:, 2]
        found.CopyFrom(numpy_helper.from_array(values, found.name))
        onnx.save(model, path)

    report = verified(tmp_path, untouched(), untouched(), change=change)
    assert report.numerics.verdict == "fail"


def test_other_weights_behind_the_evidence_are_refuted(tmp_path: Path) -> None:
    files = write(tmp_path / "s.onnx", untouched()), write(tmp_path / "r.onnx", untouched())
    evidence = (tmp_path / "s.check.npz").read_bytes()
    write(files[0], untouched(seed=7))
    (tmp_path / "s.check.npz").write_bytes(evidence)
    for file in files:
        qdq(file)
    report = opdf.verify(*files, only="structure,numerics", device="cpu")
    assert report.structure.verdict == "pass" and report.numerics.verdict == "fail"


def test_where_int8_breaks_both_nothing_is_said_of_the_candidate(tmp_path: Path) -> None:
    wide = widened(untouched(), 3000.0)
    report = verified(tmp_path, wide, wide)
    assert report.numerics.verdict == "not_checked" and report.exit_code == 4
    assert "a file which always answers the mean would pass" in report.numerics.reason


@pytest.mark.parametrize(
    ("beside", "sentence"),
    [("none", "there is no reference"), ("float", "r.onnx is not quantised")],
)
def test_without_a_quantised_reference_there_is_no_budget(
    tmp_path: Path, beside: str, sentence: str
) -> None:
    student = write(tmp_path / "s.onnx", untouched())
    reference = write(tmp_path / "r.onnx", untouched())
    qdq(student)
    other = reference if beside == "float" else None
    report = opdf.verify(student, other, only="numerics", device="cpu")
    assert report.numerics.verdict == "not_checked" and report.exit_code == 4
    assert sentence in report.numerics.reason and "quantised alike" in report.numerics.reason
    assert report.numerics.drops[0].reference is None


def test_what_is_worse_than_the_mean_is_refuted_alone(tmp_path: Path) -> None:
    student = write(tmp_path / "s.onnx", untouched())
    qdq(student)
    scaled(2.0)(student)
    report = opdf.verify(student, only="numerics", device="cpu")
    assert report.numerics.verdict == "fail"
    assert "always answering the mean would be better" in report.numerics.reason


def test_a_reference_without_check_data_gives_no_budget(tmp_path: Path) -> None:
    files = write(tmp_path / "s.onnx", untouched()), write(tmp_path / "r.onnx", untouched())
    for file in files:
        qdq(file)
    (tmp_path / "r.check.npz").unlink()
    report = opdf.verify(*files, only="numerics", device="cpu")
    assert report.exit_code == 4 and "r.onnx has no check data" in report.numerics.reason


def test_a_reference_that_alone_was_rewritten_is_told(tmp_path: Path) -> None:
    """The candidate's check data names it, as that of an int8 export does."""
    files = (
        write(tmp_path / "s.onnx", trained(untouched())),
        write(tmp_path / "r.onnx", untouched()),
    )
    for file in files:
        qdq(file)
    check = check_path(files[0])
    digest = np.array(sha256(files[0]))
    np.savez(check, **{**np.load(check), "onnx_sha256": digest})
    report = opdf.verify(*files, only="structure,numerics")
    assert report
    assert "r.onnx was rewritten after export and s.onnx was not" in str(report)


def test_a_reference_only_is_quantised(tmp_path: Path) -> None:
    """A candidate in float32 is held to float32, whatever lies beside it."""
    files = write(tmp_path / "s.onnx", untouched()), write(tmp_path / "r.onnx", untouched())
    qdq(files[1])
    report = opdf.verify(*files, only="structure,numerics", device="cpu")
    assert report.structure.verdict == "fail" and "only the reference is quantised" in str(report)


def test_the_report_shows_the_drop_of_both(tmp_path: Path) -> None:
    report = verified(tmp_path, trained(untouched()), untouched())
    for text in (str(report), report.to_markdown(), report._repr_html_()):
        assert "y: error, relative RMS" in text and "y: rows with another largest score" in text
        assert "64 rows of the check data" in text
    values = report.to_json()["numerics"]
    assert values["precision"]["dtype"] == "int8"
    assert values["precision"]["error"] == values["drops"][0]["candidate"]["relative_rms"]
    assert values["precision"]["allowed"] > values["precision"]["reference_error"]


@pytest.mark.parametrize("seed", range(4))
def test_training_moves_the_error_by_less_than_the_factor(tmp_path: Path, seed: int) -> None:
    """Either of two students may be the untouched one; the factor alone is 4, without scatter."""
    weights = untouched(seed)
    for change in (trained(weights, 10 + seed), trained(trained(weights, 20 + seed), 30 + seed)):
        report = verified(tmp_path, change, weights)
        (dropped,) = report.numerics.drops
        assert report and dropped.reference is not None
        ratio = dropped.candidate.relative_rms / dropped.reference.relative_rms
        assert 1 / 3 < ratio < 3


def test_the_drop_is_that_of_plain_arithmetic() -> None:
    right = truth(untouched(), inputs())
    off = right + 0.1
    off[0] = -right[0]
    found = drop_of("y", [right[:10], right[10:]], [off[:10], off[10:]])
    wanted = np.linalg.norm(off - right) / np.linalg.norm(right)
    assert found.relative_rms == pytest.approx(wanted, rel=1e-12)
    assert found.changed == pytest.approx(1 / 64) and found.rows == 64
    assert found.truth_rms == pytest.approx(np.sqrt(np.mean(right**2)), rel=1e-12)
    assert drop_of("y", [np.zeros((2, 3, 4))], [np.zeros((2, 3, 4))]).relative_rms == 0.0
    assert drop_of("y", [np.zeros(3)], [np.ones(3)]).relative_rms == np.inf
    assert drop_of("y", [right], [np.full_like(right, np.nan)]).relative_rms == np.inf
    masked = np.array([[1.0, -np.inf]])
    assert drop_of("y", [masked], [masked]).relative_rms == 0.0


def test_the_factor_covers_the_scatter_of_two_equal_errors() -> None:
    """One in a million at z = 4.75 is 0.02 in 20,000; at z = 0 half of the ratios are above 1."""
    rows = 64
    draw = np.random.default_rng(0).standard_normal((2, 20_000, rows))
    ratios = np.sqrt(np.mean(draw**2, axis=2))
    over = ratios[0] / ratios[1]
    assert (over > allowed_factor(rows, rows) / 4).sum() == 0
    assert np.log(over).std() == pytest.approx(1 / np.sqrt(rows), rel=0.05)
    assert allowed_factor(rows, 4 * rows) < allowed_factor(rows, rows) < allowed_factor(8, rows)


def test_the_spread_is_the_error_of_always_answering_the_mean() -> None:
    """Of rows in any samples: one each, or all in one; of other lengths apart."""
    rows = np.random.default_rng(0).standard_normal((64, 3)) + [5.0, 0.0, -5.0]
    wanted = rows.std(axis=0, ddof=1)
    for samples in ([rows], list(rows[:, None]), np.split(rows, 8)):
        assert spread_of(samples) == pytest.approx(np.sqrt(np.mean(wanted**2)), rel=1e-12)
    assert spread_of([np.full((4, 3), 7.0)]) == 0.0
    assert spread_of([rows, rows[:, :2]]) < 1.2
