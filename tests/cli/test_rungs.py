"""The command line on models that no graph can hold, wholly or in training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

Capture = pytest.CaptureFixture[str]
Run = Callable[[str], int]

GATE = """
import torch
from torch import nn


class Gate(nn.Module):
    def __init__(self, drops):
        super().__init__()
        self.first, self.second, self.drops = nn.Linear(16, 16), nn.Linear(16, 16), drops

    def forward(self, x):
        x = self.first(x)
        if self.drops:
            if self.training and torch.rand(()) < 0.5:
                return x
        elif x.sum() > 0:
            return x
        return self.second(x)


def build(drops=False):
    return Gate(drops), (torch.randn(4, 16),)
"""
REASON = "Python code depends on the value of a tensor, at gate.py:"


@pytest.fixture
def gate(tmp_path: Path) -> str:
    (tmp_path / "gate.py").write_text(GATE, encoding="utf-8")
    return f"{tmp_path}/gate.py:build"


def test_inspect_and_plan_say_the_rung_and_why(
    run: Run, gate: str, tmp_path: Path, capsys: Capture
) -> None:
    assert run(f"inspect {gate}") == 0
    out = capsys.readouterr().out
    assert "2 matches" in out and "rung: module" in out
    assert f"no graph can hold the model ({REASON}16 in forward: `elif x.sum() > 0:`)" in out
    assert run(f"plan {gate} -o {tmp_path}/p.json --json -") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["rung"] == "module" and REASON in plan["notes"][0]
    assert run(f"inspect {gate}?drops=True --json -") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["rungs"] == {"train": "module", "eval": "dynamic"}
    assert (report["rung"], report["source"]) == ("module", "modules")
    assert all(match["flops"] > 0 for match in report["matches"])


def test_expand_and_export_refuse_what_has_no_graph(
    run: Run, gate: str, tmp_path: Path, capsys: Capture
) -> None:
    assert run(f"expand {gate} -o {tmp_path}/e.pt2") == 2
    said = capsys.readouterr().err
    assert f"Gate has no graph to expand ({REASON}16 in forward: `elif x.sum() > 0:`)" in said
    assert "opdf.Overparam(model, torch.optim.AdamW, plan=plan)" in said
    assert run(f"export {gate} -o {tmp_path}/s.onnx") == 2
    said = capsys.readouterr().err
    assert f"Gate cannot be exported: no graph can hold its eval phase ({REASON}16" in said
    assert "write the branch with torch.cond or torch.where" in said
    assert sorted(file.name for file in tmp_path.iterdir() if file.is_file()) == ["gate.py"]


@pytest.mark.slow
def test_a_random_branch_in_training_leaves_the_export(
    run: Run, gate: str, tmp_path: Path, capsys: Capture
) -> None:
    drops = f"{gate}?drops=True"
    assert run(f"expand {drops} -o {tmp_path}/e.pt2") == 2
    assert "Gate has no train graph to expand" in capsys.readouterr().err
    assert run(f"export {drops} --reference {drops} -o {tmp_path}/out") == 0
    assert run(f"verify {tmp_path}/out --only structure,numerics") == 0
