"""Two processes see the batch of one, and come to the same student."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from opdf_compile.distill.run import run

EXACT = {
    "student": "student",
    "plan": "cores = 2",
    "cache": "true",
    "training": 'epochs = 2\\nprecision = "fp64"\\naccumulation = 2\\nclip = 0.5\\nema = 0.9',
}


def launch(recipe: Path, folder: Path, processes: int = 2) -> None:
    script = Path(__file__).parents[2] / "support" / "run_ranks.py"
    options = ["--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, "-m", "torch.distributed.run", *options, str(script)]
    ended = subprocess.run(
        [*command, str(recipe), str(folder)], capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stderr[-3000:]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    newest = max((folder / "checkpoints").glob("step-*"))
    found: dict[str, torch.Tensor] = {}
    for shard in newest.glob("*.safetensors"):
        tensors = load_file(shard).items()
        found.update({n: t for n, t in tensors if not n.startswith("random/")})
    return found


@pytest.mark.slow
def test_two_processes_are_one_with_the_joined_batch(write: Any, make: Any, tmp_path: Path) -> None:
    run(make(**EXACT), tmp_path / "one")
    launch(write(**EXACT), tmp_path / "two")
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert one.keys() == two.keys()
    worst = max(float((one[name].double() - two[name].double()).abs().max()) for name in one)
    assert worst < 1e-9
    logs = [(tmp_path / n / "log.jsonl").read_text().splitlines() for n in ("one", "two")]
    for first, second in zip(*logs, strict=True):
        a, b = json.loads(first), json.loads(second)
        assert a.get("loss", 0.0) == pytest.approx(b.get("loss", 0.0), abs=1e-9)
        assert a.get("accuracy") == b.get("accuracy")
    # Another batch is another student: the comparison can fail.
    run(make(**{**EXACT, "batch": "4"}), tmp_path / "other")
    other = weights(tmp_path / "other")
    assert float((one["module/first.weight"] - other["module/first.weight"]).abs().max()) > 1e-4


@pytest.mark.slow
def test_two_processes_with_batchnorm_and_dropout_run_and_fold(write: Any, tmp_path: Path) -> None:
    recipe = write(plan="cores = 2", export="true", verify="true")
    launch(recipe, tmp_path / "two")
    report = json.loads((tmp_path / "two" / "report.json").read_text(encoding="utf-8"))
    assert report["parity"]["structure"]["verdict"] == "pass"
    assert report["parity"]["numerics"]["verdict"] == "pass"
    assert report["test"]["onnx"] == report["test"]["student"]
