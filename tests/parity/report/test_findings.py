"""What a report says in its cells: which output, which shape, and never a wrong reason."""

from __future__ import annotations

from dataclasses import replace

import pytest
from full_report import FULL, MEASURED, SHAPE

from opdf_compile.parity.latency.latency_result import LatencyResult
from opdf_compile.parity.numerics.numerics_result import Element, NumericsResult, OutputError
from opdf_compile.parity.report import findings
from opdf_compile.parity.report.findings import cost_rows, meaning, shape_rows, verdict_rows, words
from opdf_compile.parity.report.parity_report import ParityReport
from opdf_compile.parity.report.parity_result import OptimisedGraphs, StructurePart

GOOD = OutputError("mask", max_abs=1e-7, rms=5e-8, floor_max=2e-7, floor_rms=1e-7, factor=4.0)
WRONG = replace(
    GOOD, output="logits", max_abs=0.1, element=Element("logits", 2, (0, 3), 0.5, 0.4, 0.1, 8e-7)
)


def finding(part: str, **parts: object) -> str:
    report = replace(FULL, **parts)  # type: ignore[arg-type]
    return next(text for name, _, text in verdict_rows(report) if name == part)


def test_a_failure_names_the_output_and_its_worst_element() -> None:
    text = finding(
        "numerics", numerics=NumericsResult("fail", 0.1, 0.1, samples=4, outputs=(WRONG,))
    )
    assert "output 'logits', sample 2, element (0, 3): 0.5 for 0.4" in text
    assert text.startswith("error 0.1 of 8e-07 allowed")


def test_figures_are_those_of_one_output() -> None:
    # The largest error of all belongs to another output than the tolerance here.
    large = replace(GOOD, output="hidden", max_abs=1.0, floor_max=10.0, rms=0.1, floor_rms=1.0)
    part = NumericsResult("pass", 1.0, 1.0, 2e-7, 8e-7, 4, (GOOD, large))
    assert finding("numerics", numerics=part) == (
        "error 1e-07 of 8e-07 allowed, noise floor 2e-07, 4 samples; output 'mask', the closest of "
        "2"
    )


def test_an_output_that_nobody_can_judge_is_not_called_missing_check_data() -> None:
    odd = replace(GOOD, unjudged="its truth is not finite")
    text = finding("numerics", numerics=NumericsResult("not_checked", samples=4, outputs=(odd,)))
    assert text == "output 'mask' was not judged: its truth is not finite"


def test_a_problem_is_the_finding() -> None:
    odd = replace(GOOD, problem="has the shape (2,), wanted (3,)")
    text = finding("numerics", numerics=NumericsResult("fail", samples=4, outputs=(odd,)))
    assert text == "output 'mask': has the shape (2,), wanted (3,)"


@pytest.mark.parametrize(
    ("verdict", "said"),
    [("same", "also after"), ("differ", "other graphs after"), ("not_compared", "not compared")],
)
def test_structure_says_what_the_runtime_makes_of_it(verdict: str, said: str) -> None:
    part = StructurePart("pass", 9, optimised=OptimisedGraphs(verdict))
    assert said in finding("structure", structure=part)


def test_several_shapes_have_a_table_and_the_worst_is_named() -> None:
    fast = replace(SHAPE, shape={"x": (32, 8)}, ci_high=0.9)
    latency = replace(MEASURED, per_shape=(fast, SHAPE))
    assert finding("latency", latency=latency).endswith("worst of 2 shapes: x=2x8")
    head, *cells = shape_rows(latency)
    assert [row[0] for row in cells] == ["x=32x8", "x=2x8"]
    assert {len(row) for row in cells} == {len(head)}


def test_columns_that_nothing_fills_are_left_out() -> None:
    plain = replace(SHAPE, memory={}, throughput={})
    head, row = shape_rows(replace(MEASURED, per_shape=(plain,)))
    assert head[-1] == "ms; reference" and "-" not in row
    assert shape_rows(LatencyResult()) == [] and cost_rows(ParityReport("pass")) == []


def test_the_meaning_names_what_was_left_out() -> None:
    report = ParityReport("pass", StructurePart("pass", 1))
    assert meaning(report) == "parity holds (numerics and latency not asked)"
    assert meaning(FULL) == "parity holds"


def test_values_of_the_environment_as_people_read_them() -> None:
    shapes = [{"x": [1, 128]}]
    assert [words(v) for v in (None, True, False, [], shapes, 3)] == [
        *("-", "on", "off", "none", "x=1x128", "3")
    ]


def test_the_command_asks_the_same_question() -> None:
    options = {
        "only": ["structure", "latency"],
        "margin": 0.05,
        "latency": "equal",
        "budget": 20.0,
        "shapes": [{"ids": [1, 8], "mask": [1, 8]}, {"ids": [4, 8], "mask": [4, 8]}],
    }
    entry = {"sha256": "a", "bytes": 1, "opset": 18, "exporter": None}
    report = ParityReport(
        "pass",
        environment={"options": options, "device": {"name": "cpu"}},
        files={"the student.onnx": entry, "x.check.npz": entry, "reference.onnx": entry},
    )
    assert findings.verify_command(report) == (
        "opdf-compile verify 'the student.onnx' --reference reference.onnx --device cpu "
        "--margin 0.05 --latency equal --budget 20.0 --only structure,latency "
        "--shapes ids=1x8,4x8 --shapes mask=1x8,4x8"
    )
    assert findings.about(report) == "the student.onnx against reference.onnx; "
    assert findings.about(ParityReport("pass")) == ""
