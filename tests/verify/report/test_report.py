"""The report has the contract's keys, its exit codes, and a form for every reader."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from opdf_compile.errors import ArtefactError, InternalError
from opdf_compile.verify.latency.result import LatencyResult
from opdf_compile.verify.latency.statistics import Interval
from opdf_compile.verify.report.plots import plot_latency
from opdf_compile.verify.report.value import (
    NumericsPart,
    ParityReport,
    StructurePart,
    overall,
    plain,
)

MEASURED = LatencyResult(
    verdict="pass",
    device="cpu",
    provider="CPUExecutionProvider",
    ratio=1.003,
    ci_low=0.991,
    ci_high=1.015,
    margin=0.05,
    rule="no-slower",
    control=Interval(0.999, 0.988, 1.011),
    sessions=2,
    rounds=3,
    reference_ms=0.2034,
    candidate_ms=0.204,
    seconds={
        "reference": np.array([[2e-4, 2.1e-4, 1.9e-4], [2e-4, 2.2e-4, 2e-4]]),
        "candidate": np.array([[2e-4, 2.0e-4, 1.9e-4], [2.1e-4, 2.2e-4, 2e-4]]),
        "control": np.array([[2e-4, 2.0e-4, 2.1e-4], [2e-4, 2.1e-4, 2e-4]]),
    },
    notes=("the verdict was clear",),
)
FULL = ParityReport(
    verdict="pass",
    structure=StructurePart("pass", 412),
    numerics=NumericsPart("pass", 3.1e-7, 2.2e-7, 3e-7, 1.2e-6, 4),
    latency=MEASURED,
    environment={
        "versions": {"onnxruntime": "1.31.1"},
        "device": {"name": "cpu", "chosen_because": "asked for"},
        "options": {"on_inconclusive": "warn"},
        "notes": ["the verdict was clear"],
    },
    files={
        "student.onnx": {"sha256": "a" * 64, "bytes": 1234, "opset": 18, "exporter": "torch.onnx 2"}
    },
)


def judged(
    structure: str, numerics: str, latency: str, on_inconclusive: str = "warn"
) -> ParityReport:
    return ParityReport(
        verdict=overall(structure, numerics, latency),
        structure=StructurePart(structure),
        numerics=NumericsPart(numerics),
        latency=LatencyResult(latency),
        environment={"options": {"on_inconclusive": on_inconclusive}},
    )


@pytest.mark.parametrize(
    ("parts", "on_inconclusive", "verdict", "code"),
    [
        (("pass", "pass", "pass"), "warn", "pass", 0),
        (("fail", "pass", "pass"), "warn", "fail", 1),
        (("pass", "fail", "pass"), "warn", "fail", 1),
        (("pass", "pass", "fail"), "warn", "fail", 1),
        (("fail", "not_checked", "inconclusive"), "warn", "fail", 1),
        (("pass", "pass", "inconclusive"), "warn", "inconclusive", 3),
        (("pass", "pass", "inconclusive"), "fail", "inconclusive", 1),
        (("pass", "not_checked", "pass"), "warn", "inconclusive", 4),
        (("pass", "not_checked", "pass"), "fail", "inconclusive", 4),
        (("pass", "not_checked", "inconclusive"), "warn", "inconclusive", 4),
        (("pass", "not_checked", "inconclusive"), "fail", "inconclusive", 1),
        # Parts that nobody asked for decide nothing.
        (("pass", "not_asked", "not_asked"), "warn", "pass", 0),
        (("not_asked", "not_asked", "inconclusive"), "warn", "inconclusive", 3),
        (("fail", "not_asked", "not_asked"), "warn", "fail", 1),
    ],
)
def test_verdict_truth_and_exit_code(
    parts: tuple[str, str, str], on_inconclusive: str, verdict: str, code: int
) -> None:
    report = judged(*parts, on_inconclusive)
    assert report.verdict == verdict
    assert report.exit_code == code
    assert bool(report) == (verdict == "pass")


def test_the_json_has_exactly_the_keys_of_the_contract() -> None:
    values = FULL.to_json()
    assert list(values) == [
        *("schema", "verdict", "structure", "numerics", "latency", "environment", "files")
    ]
    assert values["schema"] == "opdf-report/1"
    assert set(values["structure"]) == {"verdict", "nodes", "differences"}
    assert set(values["numerics"]) == {
        *("verdict", "max_abs_error", "max_rel_error", "noise_floor", "tolerance", "samples")
    }
    assert set(values["latency"]) == {
        *("verdict", "device", "provider", "ratio", "ci_low", "ci_high", "margin", "rule"),
        *("control", "sessions", "rounds", "reference_ms", "candidate_ms"),
        *("throughput", "memory", "cold_start_ms", "cold_start", "file_bytes", "shapes"),
    }
    assert set(values["latency"]["control"]) == {"ratio", "ci_low", "ci_high"}
    assert set(values["files"]["student.onnx"]) == {"sha256", "bytes", "opset", "exporter"}


def test_parts_that_were_not_asked_say_so_under_the_same_keys() -> None:
    values = ParityReport("pass").to_json()
    assert set(values["latency"]) == set(FULL.to_json()["latency"])
    assert {values[part]["verdict"] for part in ("structure", "numerics", "latency")} == {
        "not_asked"
    }


def test_no_number_that_json_does_not_know_is_written(tmp_path: Path) -> None:
    odd = replace(
        FULL,
        numerics=NumericsPart("fail", math.nan, math.inf, -math.inf, 1e-6, 4),
        latency=replace(MEASURED, ci_high=math.inf, control=Interval(1.0, 0.0, math.inf)),
        environment={"array": np.float32(0.5), "path": tmp_path, "infinite": math.nan},
    )
    path = tmp_path / "report.json"
    odd.save(path)
    values = json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert values["numerics"]["max_abs_error"] is None
    assert values["latency"]["ci_high"] is None
    assert values["latency"]["control"]["ci_high"] is None
    assert values["environment"] == {"array": 0.5, "path": str(tmp_path), "infinite": None}


def test_numbers_survive_the_file(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    FULL.save(path)
    assert json.loads(path.read_text(encoding="utf-8")) == FULL.to_json()


def test_a_report_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="does not exist"):
        FULL.save(tmp_path / "no" / "report.json")
    assert list(tmp_path.iterdir()) == []


def test_plain_keeps_whole_numbers_and_truth_values() -> None:
    assert plain({"a": (1, True, None, "x", 2.5)}) == {"a": [1, True, None, "x", 2.5]}


@pytest.mark.parametrize("verdict", ["pass", "fail", "inconclusive"])
def test_every_form_names_the_verdict_and_the_findings(verdict: str) -> None:
    report = replace(
        FULL,
        verdict=verdict,  # type: ignore[arg-type]
        structure=StructurePart("fail", 412, ("attribute 'axis' is 1\n  candidate: Softmax",)),
    )
    forms = (str(report), report.to_markdown(), report._repr_html_())
    for form in forms:
        assert verdict in form.lower()
        for finding in ("412 nodes, 1 difference", "1.2e-06", "1.003x [0.991, 1.015]", "Softmax"):
            assert finding in form
        assert "control 0.999x [0.988, 1.011]" in form


def test_long_lists_of_differences_are_cut_for_people_only() -> None:
    report = ParityReport("fail", StructurePart("fail", 9, tuple(f"d{i}" for i in range(14))))
    assert "and 4 more" in str(report) and "d13" not in str(report)
    assert len(report.to_json()["structure"]["differences"]) == 14


def test_names_out_of_a_model_cannot_break_the_page_or_the_table() -> None:
    hostile = "<script>alert(1)</script> | &"
    report = ParityReport("fail", StructurePart("fail", 1, (hostile,)))
    assert "<script>" not in report._repr_html_()
    assert "<script>" not in report.to_markdown()
    assert "\\|" in report.to_markdown()


def test_forms_of_a_report_without_measurements() -> None:
    report = judged("pass", "not_checked", "not_asked")
    for form in (str(report), report.to_markdown(), report._repr_html_()):
        assert "no check data" in form
        assert "not asked" in form


@pytest.mark.parametrize(
    ("suffix", "magic"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")]
)
def test_the_plot_is_a_file_of_its_kind(tmp_path: Path, suffix: str, magic: bytes) -> None:
    path = tmp_path / f"latency{suffix}"
    plot_latency(MEASURED, path)
    assert path.read_bytes().startswith(magic)
    first = path.read_bytes()
    plot_latency(MEASURED, path)
    assert path.read_bytes() == first
    assert list(tmp_path.iterdir()) == [path]


def test_a_plot_needs_a_measurement(tmp_path: Path) -> None:
    with pytest.raises(InternalError, match="without a measurement"):
        plot_latency(LatencyResult(), tmp_path / "latency.png")
    assert list(tmp_path.iterdir()) == []
