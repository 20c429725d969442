"""Each command on a small real student: what it prints, what it writes, what its JSON holds."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Capture = pytest.CaptureFixture[str]
Run = Callable[[str], int]
SLOW = pytest.mark.slow


def test_inspect_lists_every_weight(run: Run, capsys: Capture) -> None:
    assert run("inspect student.py:build") == 0
    out = capsys.readouterr().out
    for key in ("conv.weight", "hidden.weight", "head.weight"):
        assert key in out
    assert "3 matches" in out
    assert "prints while" not in out


def test_inspect_takes_arguments_and_inputs(run: Run, capsys: Capture) -> None:
    assert run("inspect student.py:build?width=4 --json -") == 0
    first = json.loads(capsys.readouterr().out)
    assert first["matches"][0]["shape"] == [4, 3, 3, 3]
    assert run("inspect student.py:bare --input image=Bx3x8x8:float32 --size B=2 --json -") == 0
    assert len(json.loads(capsys.readouterr().out)["matches"]) == 3


def test_plan_writes_and_prints_the_plan(run: Run, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "p.json"
    assert run(f"plan student.py:build -o {out} --scale 1.5 --exclude head.*") == 0
    printed = capsys.readouterr().out
    plan = json.loads(out.read_text())
    assert [entry["key"] for entry in plan["entries"]] == ["conv.weight", "hidden.weight"]
    assert "hidden.weight" in printed
    assert f"{plan['totals']['trained']:,} trained" in printed


@pytest.mark.parametrize(
    ("line", "schema"),
    [
        ("inspect student.py:build", "opdf-match/1"),
        ("plan student.py:build -o {tmp}/p.json", "opdf-plan/1"),
        pytest.param("expand student.py:build -o {tmp}/e.pt2", "opdf-expand/1", marks=SLOW),
        ("fold expanded.pt2 -o {tmp}/f.pt2", "opdf-fold/1"),
        pytest.param("export folded.pt2 -o {tmp}/s.onnx", "opdf-export/1", marks=SLOW),
        ("verify bundle --only structure,numerics", "opdf-report/1"),
        ("parametrizations", "opdf-parametrizations/1"),
        ("doctor", "opdf-doctor/1"),
    ],
)
def test_json_on_stdout_is_json_alone(
    line: str, schema: str, run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # capfd also sees what compiled libraries write past Python.
    assert run(f"{line.format(tmp=tmp_path)} --json -") == 0
    assert json.loads(capfd.readouterr().out)["schema"] == schema


def test_fold_gives_the_students_keys(made: Path) -> None:
    from safetensors.numpy import load_file

    keys = set(load_file(made / "folded.safetensors"))
    assert {"conv.weight", "norm.running_mean", "hidden.weight", "head.bias"} <= keys
    assert not [key for key in keys if "_cores" in key]


def test_weights_go_back_into_the_model(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "again.onnx"
    assert run(f"export student.py:build --weights folded.safetensors -o {out} -q") == 0
    assert run(f"verify {out} --reference reference.onnx --only structure,numerics -q") == 0


# tests/io/models/test_program_archive.py has the quick one, without the command line.
@pytest.mark.slow
def test_expanded_file_trains_without_this_package(made: Path, tmp_path: Path, run: Run) -> None:
    trained = tmp_path / "trained.safetensors"
    script = f"""
import sys
sys.modules["opdf_compile"] = None
import torch
from safetensors.torch import save_file
model = torch.export.load({str(made / "expanded.pt2")!r}).module()
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
image, label = torch.randn(16, 3, 8, 8), torch.randint(5, (16,))
losses = []
for _ in range(8):
    loss = torch.nn.functional.cross_entropy(model(image)["logits"], label)
    optimizer.zero_grad(); loss.backward(); optimizer.step()
    losses.append(loss.item())
assert losses[-1] < losses[0], losses
save_file({{k: v.contiguous() for k, v in model.state_dict().items()}}, {str(trained)!r})
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    folded, onnx = tmp_path / "folded.pt2", tmp_path / "trained.onnx"
    assert run(f"fold expanded.pt2 --weights {trained} -o {folded} -q") == 0
    assert run(f"export {folded} -o {onnx} -q") == 0
    assert run(f"verify {onnx} --reference reference.onnx --only structure,numerics -q") == 0


def test_verify_prints_the_verdict(run: Run, tmp_path: Path, capsys: Capture) -> None:
    summary = tmp_path / "s.md"
    line = f"verify bundle --only structure,numerics --summary {summary} --json {tmp_path}/r.json"
    assert run(line) == 0
    assert capsys.readouterr().out.rstrip().endswith("verdict: pass")
    assert json.loads((tmp_path / "r.json").read_text())["verdict"] == "pass"
    assert "pass" in summary.read_text()


def test_verify_measures_latency(run: Run, tmp_path: Path, capsys: Capture) -> None:
    plot = tmp_path / "l.png"
    code = run(f"verify bundle --only latency --margin 0.9 --budget 3 --plot {plot}")
    assert code in (0, 3), "the same graph twice is not refuted at this margin"
    assert "latency" in capsys.readouterr().out
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_verify_refutes_another_model(run: Run, tmp_path: Path, capsys: Capture) -> None:
    other = tmp_path / "other.onnx"
    assert run(f"export student.py:build?width=4 -o {other} -q") == 0
    assert run(f"verify {other} --reference reference.onnx --only structure") == 1
    out = capsys.readouterr().out
    assert "difference: " in out
    assert out.rstrip().endswith("verdict: fail")


def test_verify_without_check_data_exits_4(run: Run, made: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone.onnx"
    alone.write_bytes((made / "student.onnx").read_bytes())
    assert run(f"verify {alone} --reference reference.onnx --only structure,numerics -q") == 4
