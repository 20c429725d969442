"""The report has the contract's keys, its exit codes, and a form for every reader."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from full_report import FULL, MARKED, MEASURED, SHAPE

from opdf_compile.errors import ArtefactError, InternalError
from opdf_compile.parity.latency.latency_result import LatencyResult
from opdf_compile.parity.latency.ratio_interval import Interval
from opdf_compile.parity.numerics.numerics_result import NumericsResult, OutputError
from opdf_compile.parity.report.figures import plot_latency
from opdf_compile.parity.report.page import page
from opdf_compile.parity.report.parity_report import ParityReport
from opdf_compile.parity.report.parity_result import (
    StructurePart,
    overall,
    plain,
)


def judged(
    structure: str, numerics: str, latency: str, on_inconclusive: str = "warn"
) -> ParityReport:
    return ParityReport(
        verdict=overall(structure, numerics, latency),
        structure=StructurePart(structure),
        numerics=NumericsResult(numerics),
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
        *("schema", "verdict", "structure", "numerics", "latency", "metric"),
        *("environment", "files"),
    ]
    assert values["schema"] == "opdf-report/1"
    assert set(values["structure"]) == {"verdict", "nodes", "differences", "optimised"}
    assert set(values["numerics"]) == {
        *("verdict", "max_abs_error", "max_rel_error", "noise_floor", "tolerance", "samples"),
        *("outputs", "precision", "drops"),
    }
    assert set(values["latency"]) == {
        *("verdict", "device", "provider", "ratio", "ci_low", "ci_high", "margin", "rule"),
        *("control", "sessions", "rounds", "reference_ms", "candidate_ms"),
        *("throughput", "memory", "cold_start_ms", "cold_start", "file_bytes", "shapes"),
    }
    assert set(values["metric"]) == {
        *("verdict", "candidate", "reference", "difference", "ci_low", "ci_high", "margin"),
        *("samples", "name", "higher_is_better", "method", "torch", "needed"),
        *("against_torch", "against_reference"),
    }
    assert set(values["latency"]["control"]) == {"ratio", "ci_low", "ci_high"}
    assert set(values["files"]["student.onnx"]) == {"sha256", "bytes", "opset", "exporter"}


def test_parts_that_were_not_asked_say_so_under_the_same_keys() -> None:
    values = ParityReport("pass").to_json()
    assert set(values["latency"]) == set(FULL.to_json()["latency"])
    parts = ("structure", "numerics", "latency", "metric")
    assert {values[part]["verdict"] for part in parts} == {"not_asked"}


def test_no_number_that_json_does_not_know_is_written(tmp_path: Path) -> None:
    odd = replace(
        FULL,
        numerics=NumericsResult("fail", math.nan, math.inf, -math.inf, 1e-6, 4),
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
    # Markdown shows "\\[" as "[".
    shown = report.to_markdown().replace("\\", "")
    for form in (str(report), shown, report._repr_html_()):
        assert verdict in form.lower()
        for finding in ("412 nodes, 1 difference", "1.2e-06", "1.003x [0.991, 1.015]", "Softmax"):
            assert finding in form
        assert "control 0.999x [0.988, 1.011]" in form


def test_long_lists_of_differences_are_cut_for_people_only() -> None:
    report = ParityReport("fail", StructurePart("fail", 9, tuple(f"d{i}" for i in range(14))))
    assert "and 4 more" in str(report) and "d13" not in str(report)
    assert len(report.to_json()["structure"]["differences"]) == 14


def outside_fences(page: str) -> str:
    """Markdown without what stands between fences, where nothing is taken for markup."""
    kept, fence = [], ""
    for line in page.splitlines():
        opening = re.fullmatch(r"(`{3,})text", line)
        if not fence and opening:
            fence = opening[1]
        elif fence and line == fence:
            fence = ""
        elif not fence:
            kept.append(line)
    assert not fence
    return "\n".join(kept)


@pytest.mark.parametrize("more", ["", "\n```\n", "\n`````text\n````"])
def test_names_out_of_a_model_cannot_break_the_page_or_the_table(more: str) -> None:
    files = {f"{MARKED}.onnx": dict(FULL.files["student.onnx"])}
    notes = {"notes": [MARKED], "device": {"name": MARKED}, MARKED: MARKED}
    error = OutputError(MARKED, problem=MARKED)
    report = replace(
        FULL,
        verdict="fail",
        structure=StructurePart("fail", 1, (MARKED + more + MARKED,)),
        numerics=replace(FULL.numerics, outputs=(error,)),
        latency=replace(MEASURED, per_shape=(replace(SHAPE, shape={MARKED: (1,)}),)),
        environment=notes,
        files=files,
    )
    for form in (report._repr_html_(), page(report), outside_fences(report.to_markdown())):
        assert "<mark" not in form
        assert "&lt;mark" in form
    assert "\\|" in report.to_markdown()


def test_the_page_stands_alone() -> None:
    text = page(FULL)
    assert text.startswith("<!doctype html>")
    # Names of XML's own vocabularies are no addresses that a browser opens.
    opened = re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)
    assert not re.search(r"https?:|src=|url\((?!#)|@import|<link|<script", opened)
    for words in ("PASS".lower(), "student.onnx", "a" * 64, "0.991 to 1.015", "the verdict was"):
        assert words in text
    assert len(text) < 400_000


def test_the_page_shows_what_differs(tmp_path: Path) -> None:
    fault = OutputError("logits", max_abs=2.0, floor_max=1e-7, factor=4.0)
    report = replace(
        FULL,
        verdict="fail",
        structure=StructurePart("fail", 9, ("Sub has its inputs swapped",)),
        numerics=NumericsResult("fail", 2.0, 1.0, 1e-7, 4e-7, 4, (fault,)),
    )
    report.save_html(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Sub has its inputs swapped" in text
    assert 'class="bar fail"' in text and "100 % of the tolerance" in text
    assert 'class="bar fail"' not in page(FULL)


def test_forms_of_a_report_without_measurements() -> None:
    report = judged("pass", "not_checked", "not_asked")
    for form in (str(report), report.to_markdown(), report._repr_html_()):
        assert "no check data" in form
        assert "not asked" in form


def misnamed(text: str) -> list[str]:
    """Cells of wide tables that do not say, on a narrow page, which column they are of."""
    tables = re.findall(r'<table class="wide">(.*?)</table>', text, re.DOTALL)
    assert tables
    wrong = []
    for table in tables:
        heads = re.findall(r"<th>(.*?)</th>", table)
        for row in re.findall(r"<tr>(?!<th>)(.*?)</tr>", table, re.DOTALL):
            said = [re.search(r'data-head="(.*?)"', cell) for cell in re.findall(r"<td[^>]*>", row)]
            if [found and found[1] for found in said] != heads:
                wrong.append(row)
    return wrong


def test_each_cell_of_a_wide_table_names_its_column() -> None:
    error = OutputError("logits", max_abs=2.0, floor_max=1e-7, factor=4.0)
    text = page(replace(FULL, numerics=replace(FULL.numerics, outputs=(error,))))
    assert text.count('<table class="wide">') == 4
    assert misnamed(text) == []
    assert len(misnamed(text.replace('data-head="verdict"', ""))) > 0


@pytest.mark.parametrize(
    ("suffix", "magic"),
    [
        (".png", b"\x89PNG"),
        (".svg", b"<?xml"),
        pytest.param(".pdf", b"%PDF", marks=pytest.mark.slow),
    ],
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
