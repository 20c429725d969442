"""How often the verdict on numbers is wrong: honest exports refuted, and faults that pass.

Honest cases have a reference of the same dtype and other weights, as `verify` gives one. The counts
of caught faults are the table in docs/method.md; print it with

    python -m pytest tests/parity/numerics/test_numerics_rates.py -m slow -s -k caught
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from op_graphs import GRAPHS, build, draw, judge, sample_of

from opdf_compile.artefacts.check_file import CheckData, check_path
from opdf_compile.parity.numerics.floors import Peer
from opdf_compile.parity.numerics.judging import judge_output
from opdf_compile.parity.numerics.numerics_result import NumericsResult

FAULTS = (1e-1, 1e-2, 1e-3, 1e-4)
# Sixteen rows, as export draws them.
COUNT = {"gemm": 4, "conv": 8, "norm": 4, "soft": 4}


def case(
    folder: Path, kind: str, seed: int, dtype: str, wrong: float = 0.0, whole: bool = False
) -> NumericsResult:
    """Judge a candidate beside an honest reference with other weights, of another size too."""
    count = COUNT[kind]
    candidate = build(folder / "c.onnx", kind, seed, dtype, wrong=wrong, whole=whole, count=count)
    scale = (1.0, 0.5, 2.0)[seed % 3]
    reference = build(folder / "r.onnx", kind, seed + 1000, dtype, scale=scale, count=count)
    return judge(candidate, reference=reference, reference_check=check_path(reference))


def refuted(folder: Path, seeds: range, dtype: str) -> dict[str, str]:
    found = {}
    for kind in GRAPHS:
        for seed in seeds:
            result = case(folder, kind, seed, dtype)
            if result.verdict != "pass":
                found[f"{kind} {seed}"] = result.worst
    return found


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_no_honest_export_is_refuted(tmp_path: Path, dtype: str) -> None:
    assert not refuted(tmp_path, range(5), dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_no_honest_export_of_hundreds_is_refuted(tmp_path: Path, dtype: str) -> None:
    assert not refuted(tmp_path, range(100, 160), dtype)


def bfloat16(kind: str, seed: int, wrong: float = 0.0) -> tuple[CheckData, list[np.ndarray]]:
    """Evidence of torch in bfloat16, and a runtime that computes it in float32 and rounds once.

    ONNX Runtime's CPU provider has hardly a kernel for bfloat16, so a runtime is made up.
    """
    function, _, shape, shapes = GRAPHS[kind]
    rng = np.random.default_rng(seed)
    low = {
        name: torch.from_numpy(value).bfloat16()
        for name, value in draw(rng, shapes, "float32").items()
    }
    last = max(shapes, key=lambda name: (len(shapes[name]), name))
    samples, values = [], []
    for _ in range(COUNT[kind]):
        x = torch.from_numpy(rng.standard_normal(shape).astype(np.float32)).bfloat16()
        truth = function(x.double(), {name: value.double() for name, value in low.items()})
        high = {name: value.float() for name, value in low.items()}
        high[last] = high[last] * (1 + wrong)
        samples.append(
            sample_of({"x": x.float().numpy()}, {"y": truth.numpy()}, {"y": function(x, low)})
        )
        values.append(function(x.float(), high).bfloat16().float().numpy())
    return CheckData(("x",), ("y",), "bfloat16", tuple(samples)), values


def judged_bfloat16(kind: str, seed: int, wrong: float = 0.0) -> float:
    data, values = bfloat16(kind, seed + 1000)
    theirs = judge_output("y", data, values)
    peer = Peer(
        theirs.max_abs / theirs.scale,
        theirs.rms / theirs.scale,
        theirs.amplification,
        theirs.rows,
        "bfloat16",
    )
    data, values = bfloat16(kind, seed, wrong)
    return judge_output("y", data, values, peer).excess


@pytest.mark.parametrize("kind", GRAPHS)
def test_in_bfloat16_honest_exports_pass_and_wrong_ones_do_not(kind: str) -> None:
    assert all(judged_bfloat16(kind, seed) <= 1 for seed in range(55))
    assert all(judged_bfloat16(kind, seed, wrong=0.5) > 1 for seed in range(5))


@pytest.mark.parametrize("kind", GRAPHS)
def test_a_tensor_that_is_off_by_a_percent_is_refuted_in_float16(tmp_path: Path, kind: str) -> None:
    for seed in range(4):
        assert case(tmp_path, kind, seed, "float16", 1e-2, whole=True).verdict == "fail"


def test_the_budget_is_data_and_a_sentence(tmp_path: Path) -> None:
    found = case(tmp_path, "gemm", 0, "float16").precision
    assert found is not None and (found.dtype, found.reference_dtype) == ("float16", "float16")
    assert found.error is not None and found.allowed is not None
    assert 0 < found.error < found.allowed and "of torch's own error" in found.sentence


def test_a_reference_of_another_precision_gives_no_budget(tmp_path: Path) -> None:
    candidate = build(tmp_path / "c.onnx", "gemm", 0, "float16")
    reference = build(tmp_path / "r.onnx", "gemm", 1)
    result = judge(candidate, reference=reference, reference_check=check_path(reference))
    assert result.verdict == "pass" and result.precision is not None
    assert result.precision.allowed is None
    assert "export the reference in float16 too" in result.precision.sentence


def table(folder: Path, seeds: range) -> dict[tuple[str, bool, float], int]:
    """How many faulty exports of each size are caught, over all graphs and seeds."""
    counts: dict[tuple[str, bool, float], int] = {}
    for dtype in ("float32", "float16"):
        for whole in (False, True):
            for fault in FAULTS:
                results = [
                    case(folder, kind, seed, dtype, fault, whole)
                    for kind in GRAPHS
                    for seed in seeds
                ]
                caught = sum(result.verdict == "fail" for result in results)
                counts[dtype, whole, fault] = caught
    return counts


@pytest.mark.slow
def test_how_small_a_fault_is_caught(tmp_path: Path) -> None:
    seeds = range(10)
    counts = table(tmp_path, seeds)
    for key, caught in counts.items():
        print(key, f"{caught} of {len(seeds) * len(GRAPHS)}")  # noqa: T201
    everything = len(seeds) * len(GRAPHS)
    # In float32 every fault of a thousandth is caught, of one weight as of a tensor.
    for whole in (False, True):
        assert counts["float32", whole, 1e-3] == everything
