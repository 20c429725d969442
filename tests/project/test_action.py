"""The GitHub Action: what it passes on, what it answers, and that no input can become a command.

The scripts of action.yml run here as they run there, in bash, with files in place of the ones that
GitHub gives a step.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).parents[2]
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
STEPS: list[dict[str, Any]] = ACTION["runs"]["steps"]
EXPRESSION = re.compile(r"\$\{\{\s*inputs\.([\w-]+)\s*\}\}")

# Stands for the program: it notes its arguments, writes the report it is told to, and exits.
PROGRAM = """#!{python}
import json, os, sys
if sys.argv[1] == "-c":
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
with open(os.environ["SEEN"], "w") as file:
    json.dump(sys.argv[1:], file)
for option, text in (("--json", '{{"verdict": "said"}}'), ("--summary", "# said"), ("--html", "")):
    if os.environ["EXIT"] != "2":
        open(sys.argv[sys.argv.index(option) + 1], "w").write(text)
sys.exit(int(os.environ["EXIT"]))
"""


@dataclass(frozen=True)
class Ran:
    code: int
    printed: str
    outputs: Mapping[str, str]
    summary: str


def script(name: str) -> str:
    return next(step["run"] for step in STEPS if step.get("id") == name)


def environment(name: str, given: Mapping[str, str]) -> dict[str, str]:
    """The step's `env`, with each expression replaced by what a workflow gives, or the default."""
    unknown = set(given) - set(ACTION["inputs"])
    assert not unknown, unknown
    values = {key: str(item.get("default", "")) for key, item in ACTION["inputs"].items()}
    values |= given
    (step,) = (step for step in STEPS if step.get("id") == name)
    return {
        key: EXPRESSION.sub(lambda found: values[found[1]], text)
        for key, text in step["env"].items()
    }


def run(folder: Path, given: Mapping[str, str], **extra: str) -> Ran:
    output, summary = folder / "github-output", folder / "github-summary"
    output.write_text("")
    summary.write_text("an earlier step\n")
    done = subprocess.run(
        ["bash", "-c", script("verify")],
        cwd=folder,
        env=os.environ
        | environment("verify", given)
        | {"GITHUB_OUTPUT": str(output), "GITHUB_STEP_SUMMARY": str(summary)}
        | extra,
        capture_output=True,
        text=True,
        timeout=300,
    )
    pairs = (line.split("=", 1) for line in output.read_text().splitlines())
    return Ran(done.returncode, done.stdout + done.stderr, dict(pairs), summary.read_text())


@pytest.fixture
def program(tmp_path: Path) -> Callable[..., tuple[Ran, list[str]]]:
    """Run the step with a program that exits as told; what it did, and the arguments it passed."""
    stand_in = tmp_path / "stand-in"
    stand_in.write_text(PROGRAM.format(python=sys.executable))
    stand_in.chmod(0o755)
    seen = tmp_path / "seen.json"

    def call(code: int = 0, **given: str) -> tuple[Ran, list[str]]:
        named = {key.replace("_", "-"): value for key, value in given.items()}
        named = {"candidate": "a.onnx", "python": str(stand_in)} | named
        ran = run(tmp_path, named, SEEN=str(seen), EXIT=str(code))
        return ran, json.loads(seen.read_text()) if seen.exists() else []

    return call


def test_inputs_reach_bash_through_the_environment_only() -> None:
    for step in STEPS:
        assert "${{" not in step.get("run", "")


def test_the_steps_use_each_input_and_no_other() -> None:
    used = set(re.findall(r"inputs\.([\w-]+)", json.dumps(STEPS)))
    assert used == set(ACTION["inputs"])


def test_outputs_are_those_that_the_step_sets() -> None:
    wanted = {key: f"${{{{ steps.verify.outputs.{key} }}}}" for key in ACTION["outputs"]}
    assert {key: item["value"] for key, item in ACTION["outputs"].items()} == wanted
    set_there = set(re.findall(r'echo "([\w-]+)=', script("verify")))
    assert set_there == set(ACTION["outputs"])


@pytest.mark.parametrize(
    ("code", "given", "wanted", "said"),
    [
        (0, {}, 0, ""),
        (1, {}, 1, "::error title=opdf-compile::parity is refuted"),
        (2, {}, 2, "::error title=opdf-compile::opdf-compile verify exited with 2"),
        (3, {}, 0, "::warning title=opdf-compile::latency is inconclusive"),
        (4, {}, 4, "::error title=opdf-compile::numerics was not checked"),
        (4, {"on_not_checked": "warn"}, 0, "::warning title=opdf-compile::numerics was not"),
        (70, {}, 70, "exited with 70"),
        (0, {"on_not_checked": "maybe"}, 2, 'on-not-checked is "maybe"; give warn or fail'),
    ],
)
def test_exit_codes(
    program: Callable[..., Any], code: int, given: dict[str, str], wanted: int, said: str
) -> None:
    ran, _ = program(code, **given)
    assert ran.code == wanted
    assert said in ran.printed
    if given.get("on_not_checked") == "maybe":
        return
    assert ran.outputs["exit-code"] == str(code)
    assert ran.outputs["verdict"] == ("" if code == 2 else "said")
    added = "" if code == 2 else "# said"
    assert ran.summary == f"an earlier step\n{added}"


def test_what_the_program_is_given(program: Callable[..., Any]) -> None:
    _, plain = program()
    assert plain[:3] == ["-m", "opdf_compile", "verify"] and plain[-2:] == ["--", "a.onnx"]
    for option in ("--reference", "--check", "--only", "--shapes", "--samples", "--metric"):
        assert option not in plain
    _, full = program(
        reference="r.onnx",
        check="c.npz",
        only="structure",
        shapes="input_ids=1x8,2x8\n\nmask=1x8,2x8\n",
        margin="0.1",
        device="cpu",
        runtime="openvino",
        latency="equal",
        budget="5",
        on_inconclusive="fail",
    )
    pairs = [(full[at], full[at + 1]) for at in range(3, len(full) - 2, 2)]
    assert pairs == [
        ("--device", "cpu"),
        ("--runtime", "openvino"),
        ("--margin", "0.1"),
        ("--latency", "equal"),
        ("--budget", "5"),
        ("--on-inconclusive", "fail"),
        ("--json", "opdf-report/report.json"),
        ("--html", "opdf-report/report.html"),
        ("--summary", "opdf-report/report.md"),
        ("--reference", "r.onnx"),
        ("--check", "c.npz"),
        ("--only", "structure"),
        ("--shapes", "input_ids=1x8,2x8"),
        ("--shapes", "mask=1x8,2x8"),
    ]


def test_what_it_is_given_of_a_metric(program: Callable[..., Any]) -> None:
    _, full = program(
        samples="rows.npz", metric="m.py:loss", metric_margin="0.1", metric_better="lower"
    )
    wanted = "--samples rows.npz --metric m.py:loss --metric-margin 0.1 --lower-is-better"
    assert wanted in " ".join(full)
    ran, _ = program(metric_better="more")
    assert ran.code == 2 and 'metric-better is "more"; give higher or lower' in ran.printed


@pytest.mark.parametrize(
    "name", ["$(touch hacked)", "`touch hacked`", "a; touch hacked", '"; touch hacked; "', "--help"]
)
def test_no_input_becomes_a_command(program: Callable[..., Any], tmp_path: Path, name: str) -> None:
    ran, arguments = program(candidate=name, reference=name, only=name, margin=name)
    assert ran.code == 0
    assert arguments[-2:] == ["--", name]
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize(
    ("given", "installed"),
    [
        ({}, "/the action[cpu]"),
        ({"install": "checkout[gpu]"}, "/the action[gpu]"),
        ({"install": "checkout"}, "/the action"),
        ({"install": "dist/a.whl[cpu]"}, "dist/a.whl[cpu]"),
        ({"install": "checkout.whl"}, "checkout.whl"),
        ({"install": "$(touch hacked)"}, "$(touch hacked)"),
    ],
)
def test_what_pip_installs(tmp_path: Path, given: dict[str, str], installed: str) -> None:
    done = subprocess.run(
        ["bash", "-c", script("install")],
        cwd=tmp_path,
        env=os.environ
        | environment("install", {"python": "echo"} | given)
        | {"GITHUB_ACTION_PATH": "/the action"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"-m pip install --quiet --disable-pip-version-check {installed}\n"
    assert list(tmp_path.iterdir()) == []


def test_a_report_of_an_earlier_step_is_not_this_ones(program: Callable[..., Any]) -> None:
    program(0)
    ran, _ = program(2)
    assert ran.outputs["verdict"] == ""
    assert ran.summary == "an earlier step\n"


def save(path: Path, seed: int, activation: str) -> Path:
    weight = np.random.default_rng(seed).standard_normal((16, 16)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node(activation, ["h"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 16]) for n in "xy"]
    graph = helper.make_graph(
        nodes, "layer", values[:1], values[1:], [numpy_helper.from_array(weight, "w")]
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path
    )
    return path


REAL = {"python": sys.executable, "device": "cpu", "output": "out folder"}


@pytest.mark.parametrize(
    ("activation", "only", "code", "verdict"),
    [
        ("Relu", "structure", 0, "pass"),
        pytest.param("Tanh", "structure", 1, "fail", marks=pytest.mark.slow),
        pytest.param("Relu", "structure,numerics", 4, "inconclusive", marks=pytest.mark.slow),
    ],
)
def test_the_real_program(
    tmp_path: Path, activation: str, only: str, code: int, verdict: str
) -> None:
    candidate = save(tmp_path / "the student.onnx", 1, activation)
    reference = save(tmp_path / "reference.onnx", 2, "Relu")
    given = REAL | {"candidate": str(candidate), "reference": str(reference), "only": only}
    # A package of the repository that is checked stands in for no other.
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "__init__.py").write_text("raise SystemExit('another onnx')\n")
    ran = run(tmp_path, given)
    assert ran.code == code, ran.printed
    assert ran.outputs["verdict"] == verdict
    report = json.loads((tmp_path / ran.outputs["report"]).read_text())
    assert report["schema"] == "opdf-report/1" and report["verdict"] == verdict
    assert "<html" in (tmp_path / ran.outputs["html"]).read_text()
    assert ran.summary.startswith("an earlier step\n") and verdict in ran.summary.lower()
