"""The table of real models: its bundles, its rows, its picture, its part of the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import parity
import pytest
from exports import forest
from exports.models import DEFAULT, MODELS, TRIED
from exports.page import model_lines

ENVIRONMENT = {
    "date": "2026-01-01",
    "device": {"type": "cuda", "name": "A GPU", "driver": "580", "cuda": "13.0", "cudnn": 91900},
    "versions": {"onnxruntime": "1.31.0", "torch": "2.11.0"},
}


def row(model: str, batch: int, ratio: float, verdict: str) -> dict[str, Any]:
    sides = {"reference": 2.0**20, "candidate": 2.0**21}
    return {
        "model": model,
        "batch": batch,
        "verdict": verdict,
        "structure": {"verdict": "pass", "nodes": 3, "differences": []},
        "numerics": {"verdict": "pass", "max_abs_error": 1e-7, "tolerance": 1e-6},
        "latency": {
            "verdict": verdict,
            "ratio": ratio,
            "ci_low": ratio - 0.01,
            "ci_high": ratio + 0.01,
            "control": {"ratio": 1.0, "ci_low": 0.99, "ci_high": 1.01},
            "reference_ms": 1.0,
            "candidate_ms": ratio,
            "memory": sides,
            "cold_start_ms": sides,
        },
    }


VALUE = {
    "environment": ENVIRONMENT,
    "margin": 0.02,
    "rows": [
        row("bert6", 1, 1.001, "pass"),
        row("bert6", 32, 1.015, "inconclusive"),
        row("resnet18", 1, 1.2, "fail"),
        {"model": "vit_tiny", "batch": 1, "verdict": "error", "error": "no kernel"},
    ],
}


def test_the_table_of_the_page() -> None:
    lines = model_lines(VALUE, "parity-cuda")
    assert "A GPU, driver 580, CUDA 13.0, cuDNN 91900" in lines[0]
    assert lines[2] == "![Ratios with their intervals](parity_cuda.png)"
    rows = [line for line in lines if line.startswith("| ")][1:]
    assert [line.split(" | ")[0][2:] for line in rows] == ["resnet18", "vit_tiny", "bert6", "bert6"]
    assert {line.count("|") for line in rows} == {15}
    assert "1.2000 [1.1900, 1.2100]" in rows[0] and "error" in rows[1]
    assert lines[-1] == "- vit_tiny: no kernel"


def test_a_page_of_two_runtimes_has_a_table_for_each(tmp_path: Path) -> None:
    runtimes = {"onnxruntime": "1.31.0", "openvino": "2026.4.1"}
    rows = [
        {**row("resnet18", 1, ratio, "pass"), "runtime": runtime}
        for runtime, ratio in zip(runtimes, (1.001, 1.002), strict=True)
    ]
    value = {**VALUE, "environment": {**ENVIRONMENT, "runtimes": runtimes}, "rows": rows}
    text = "\n".join(model_lines(value, "parity-cpu"))
    assert "onnxruntime 1.31.0, openvino 2026.4.1" in text
    first, second = text.split("**openvino**")
    assert "1.0010" in first and "1.0010" not in second and "1.0020" in second
    labels = forest._labels(rows)
    assert labels == ["resnet18, batch 1, onnxruntime", "resnet18, batch 1, openvino"]


def test_the_picture(tmp_path: Path) -> None:
    path = tmp_path / "forest.png"
    forest.draw(VALUE, path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_every_model_names_its_inputs() -> None:
    assert set(MODELS) == {*DEFAULT, *TRIED, "tiny"}
    for model in MODELS.values():
        assert all(shape[0] == 3 for shape in model.shapes(3).values())


def test_the_bundles_must_be_somewhere(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parity.main(["--export-only"])
    assert "need --models-dir" in capsys.readouterr().err


@pytest.mark.slow
def test_a_model_is_exported_measured_and_resumed(tmp_path: Path) -> None:
    """The student differs from the reference, and a second run has nothing left to do."""
    bundles, path = tmp_path / "bundles", tmp_path / "p.json"
    words = ["--models", "tiny", "--models-dir", str(bundles)]
    assert parity.main([*words, "--export-only"]) == 0
    files = [bundles / "tiny" / f"{name}.check.npz" for name in ("student", "reference/reference")]
    student, reference = (np.load(file)["s0.out.output"] for file in files)
    assert not np.allclose(student, reference)
    measure = ["--device", "cpu", "--batches", "1,4", "--budget", "0.5", "--threads", "1"]
    for _ in range(2):
        assert parity.main([*words, *measure, "--json", str(path), "--resume"]) == 0
    value = json.loads(path.read_text())
    assert [row["batch"] for row in value["rows"]] == [1, 4]
    for row in value["rows"]:
        assert row["structure"]["verdict"] == row["numerics"]["verdict"] == "pass"
        assert row["latency"]["shapes"][0]["shape"] == {"input": [row["batch"], 48]}
