"""What int8 takes: one quantiser for all, a measure that sees a collapse, and the page."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from exports import int8_drop_page, int8_students
from exports.int8_drop_page import beyond_words, drop_words, summaries
from onnx.numpy_helper import to_array
from quality.second.problem import Problem
from torch import nn

import opdf_compile as opdf
from opdf_compile.distill.advise.contest import int8 as of_advise
from opdf_compile.io.export import int8, int8_export

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def digits() -> Problem:
    return int8_students.problem("deep", 4)


def solved(digits: Problem) -> nn.Module:
    """The linear student of the least squares: one of ten scores for each pixel, and a bias."""
    part = digits.parts["train"]
    rows = torch.cat([part.inputs.flatten(1), torch.ones(len(part.labels), 1)], dim=1)
    found = torch.linalg.pinv(rows, rcond=1e-3) @ nn.functional.one_hot(part.labels).float()
    student = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with torch.no_grad():
        student[1].weight.copy_(found[:-1].T)
        student[1].bias.copy_(found[-1])
    return student.eval()


def test_export_advise_and_the_benchmark_quantise_by_one_function() -> None:
    for user in (int8_export, of_advise, int8_students):
        assert user.quantise is int8.quantise


def test_the_file_that_is_measured_is_the_one_that_export_writes(
    digits: Problem, tmp_path: Path
) -> None:
    student = digits.begun(1).eval()
    measured = int8_students.written(digits, student, tmp_path)["channel"]
    rows = {"inputs": digits.parts["train"].inputs[: int8_students.CALIBRATION].numpy()}
    example = (digits.parts["train"].inputs[: int8_students.BATCH],)
    exported = tmp_path / "exported.onnx"
    opdf.export_onnx(student, example, exported, dtype="int8", calibrate=rows)
    ours, theirs = (
        {t.name: to_array(t) for t in onnx.load(file).graph.initializer}
        for file in (measured, exported)
    )
    assert ours.keys() == theirs.keys()
    assert sum(array.dtype == np.int8 and array.ndim == 4 for array in ours.values()) == 9
    for name, array in ours.items():
        assert np.array_equal(array, theirs[name]), name


def test_a_weight_that_is_far_larger_than_its_tensor_collapses_it(digits: Problem) -> None:
    """The first pixel is paper in all images, so that a bias takes back what its weight adds.

    In float32 nothing changes. One scale for all classes then has steps of 20 / 127, wider than
    the weights; with a scale for each, one class in ten is lost.
    """
    part = digits.parts["train"]
    assert part.inputs[:, 0, 0, 0].unique().numel() == 1
    fine = int8_students.measured(digits, solved(digits))
    assert fine["float32"] > 0.9
    assert all(abs(fine["float32"] - score) < 0.02 for score in fine["int8"].values())
    wide = solved(digits)
    with torch.no_grad():
        wide[1].bias[3] -= (20.0 - wide[1].weight[3, 0]) * part.inputs[0, 0, 0, 0]
        wide[1].weight[3, 0] = 20.0
    found = int8_students.measured(digits, wide)
    assert found["float32"] == pytest.approx(fine["float32"], abs=0.002)
    assert found["int8"]["tensor"] < found["float32"] - 0.3
    assert found["int8"]["tensor"] < found["int8"]["channel"] < fine["float32"] - 0.03


def test_reach_is_that_of_the_weights_that_run(digits: Problem) -> None:
    student = digits.begun(0)
    with torch.no_grad():
        student.convs[4].weight.fill_(1.0)
        before = int8_students.reach(student)
        student.norms[4].running_var[0] = 1e-6
    # One of 16 kernels is s = sqrt((1 + eps) / (1e-6 + eps)) times the others.
    squared = (1 + 1e-5) / (1e-6 + 1e-5)
    wanted = np.sqrt(squared / ((15 + squared) / 16))
    assert int8_students.reach(student) == pytest.approx(max(before, wanted), rel=1e-5)
    assert wanted > before


def row(method: str, seed: int, drop: float, **more: Any) -> dict[str, Any]:
    scores = {"channel": 0.9, "tensor": 0.9 - drop / 100}
    key = {"seed": seed, "regime": "hard", "model": "deep", "method": method}
    return {**key, "float32": 0.9, "int8": scores, "reach": 5.0, **more}


def test_drops_are_compared_in_pairs_by_students_t() -> None:
    """Differences 1, 2, 3: 2 +- 4.303 / sqrt(3). A seed without its plain run is left out."""
    rows = [row("plain", seed, seed) for seed in (1, 2, 3)]
    rows += [row("repvgg", seed, 2 * seed) for seed in (1, 2, 3, 4)]
    found = {(s.method, s.scales): s for s in summaries(rows)}
    tensor = found["repvgg", "tensor"]
    assert tensor.drops == pytest.approx((2, 4, 6))
    assert drop_words(tensor) == "+4.0 (at most +6.0)"
    assert beyond_words(tensor) == "+2.00 (-0.48 to +4.48), p = 0.25"
    assert beyond_words(found["plain", "tensor"]) == "-"
    assert drop_words(found["repvgg", "channel"]) == "0.0 (at most 0.0)"
    assert beyond_words(found["repvgg", "channel"]) == "0.00 (0.00 to 0.00), p = 1"


def test_what_is_shown_stands_out_and_one_seed_shows_nothing() -> None:
    rows = [row(m, s, d) for s in (1, 2, 3) for m, d in (("plain", 0), ("repvgg", 20 + s))]
    (shown,) = (s for s in summaries(rows) if s.method == "repvgg" and s.scales == "tensor")
    assert beyond_words(shown) == "**+22.00 (+19.52 to +24.48)**, p = 0.25"
    alike = [row(m, s, d) for s in (1, 2) for m, d in (("plain", 0), ("repvgg", 20))]
    (same,) = (s for s in summaries(alike) if s.method == "repvgg" and s.scales == "tensor")
    assert beyond_words(same) == "+20.00 (no interval), p = 0.5"
    assert summaries(rows[:2]) == []


@pytest.mark.slow
def test_the_benchmark_runs_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = importlib.import_module("int8_drop").main
    path = tmp_path / "drop.json"
    words = ["--models", "deep", "--methods", "plain,repvgg", "--regimes", "hard"]
    words += ["--steps", "3", "--json", str(path)]
    assert main([*words, "--seeds", "2"]) == 0
    value = json.loads(path.read_text(encoding="utf-8"))
    assert value["schema"] == "opdf-int8-drop/1" and value["steps"] == 3
    assert [(r["seed"], r["method"]) for r in value["rows"]] == [
        *((1, "plain"), (1, "repvgg")),
        *((2, "plain"), (2, "repvgg")),
    ]
    assert "`repvgg`" in int8_drop_page.tables_of(value)["quantised-drops"]
    # What is there is not measured again, and another length is no continuation.
    assert main([*words, "--seeds", "2", "--resume"]) == 0
    assert json.loads(path.read_text(encoding="utf-8"))["rows"] == value["rows"]
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--resume", "--steps", "4"])
    assert stopped.value.code == 2 and "has runs of 3 steps" in capsys.readouterr().err


def test_the_page_is_that_of_the_json() -> None:
    value = json.loads(int8_drop_page.RESULTS.read_text(encoding="utf-8"))
    written = (ROOT / "docs" / "branches.md").read_text(encoding="utf-8")
    for name, lines in int8_drop_page.tables_of(value).items():
        place = f"<!-- table: {name} -->\n\n{lines}\n\n<!-- end -->"
        assert place in written, "run: python benchmarks/int8_drop.py --page docs/branches.md"


def test_what_the_page_says_of_the_collapse_is_in_the_json() -> None:
    value = json.loads(int8_drop_page.RESULTS.read_text(encoding="utf-8"))
    found = {(s.regime, s.model, s.method, s.scales): s.drops for s in summaries(value["rows"])}
    collapsed = sorted(found["hard", "deep", "repvgg", "tensor"])
    assert len(collapsed) == 12
    assert [round(drop) for drop in collapsed[-3:]] == [13, 27, 29]
    assert collapsed[-4] == pytest.approx(4.4)
    assert max(found["hard", "deep", "plain", "tensor"]) == pytest.approx(0.1)
    assert max(found["hard", "deep", "repvgg", "channel"]) == pytest.approx(1.1)
    assert max(found["hard", "deep-skip", "repvgg", "tensor"]) == pytest.approx(1.5)
    for (regime, _model, method, _scales), drops in found.items():
        if regime == "gentle" or method in ("mpo", "gains"):
            assert max(drops) <= 0.5
