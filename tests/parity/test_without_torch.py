"""`verify` where torch is not installed: what a release machine needs is the extra `verify`."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import opdf_compile as opdf

ROOT = Path(__file__).parents[2]
# Every package that is named after the `--` cannot be imported.
BARE = """
import sys
split = sys.argv.index("--")
sys.modules.update(dict.fromkeys(sys.argv[split + 1:]))
from opdf_compile.cli import main
sys.exit(main(sys.argv[1:split]))
"""
VERIFY = ("verify", "--only", "structure,numerics", "--device", "cpu")


def modules_of(requirements: list[str]) -> set[str]:
    names = (re.match(r"[\w-]+", text) for text in requirements)
    return {name[0].replace("-", "_") for name in names if name}


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRA = PROJECT["optional-dependencies"]["verify"]


def absent() -> set[str]:
    """What the package depends on and the extra does not name; typer brings pydantic itself."""
    return modules_of(PROJECT["dependencies"]) - modules_of(EXTRA) - {"pydantic"}


def run(*arguments: str | Path, without: set[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BARE, *map(str, arguments), "--", *sorted(without)],
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    folder = tmp_path_factory.mktemp("without-torch") / "bundle"
    opdf.export_onnx(student, (torch.randn(4, 6),), folder, reference=student)
    return folder


def test_torch_is_among_what_is_absent() -> None:
    assert {"torch", "onnxscript", "matplotlib", "jinja2"} <= absent()
    assert not {"onnx", "numpy", "typer"} & absent()


def test_the_page_names_the_extra() -> None:
    page = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
    assert "pip install " + " ".join(f'"{name}"' for name in EXTRA) in page
    assert {name for name in EXTRA if name not in PROJECT["dependencies"]} == {"onnxruntime>=1.22"}


def test_a_package_that_is_absent_cannot_be_imported(bundle: Path) -> None:
    """Else the tests below would pass for the wrong reason."""
    done = run(*VERIFY, bundle, without={"onnx"})
    assert done.returncode == 2
    assert "needs onnx, which is not installed; pip install onnx" in done.stderr


def test_another_command_says_that_it_needs_torch(tmp_path: Path) -> None:
    (tmp_path / "student.py").write_text("import torch\n")
    done = run("inspect", f"{tmp_path}/student.py:build", without=absent())
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "needs torch, which is not installed; pip install torch" in done.stderr


def test_a_bundle_passes(bundle: Path) -> None:
    done = run(*VERIFY, bundle, without=absent())
    assert done.returncode == 0, done.stderr
    assert "verdict: pass" in done.stdout


def test_latency_is_measured(bundle: Path) -> None:
    options = ("--only", "latency", "--margin", "1", "--budget", "1", "--device", "cpu")
    done = run("verify", bundle, *options, without=absent())
    # A busy machine leaves it open.
    assert done.returncode in (0, 3), done.stderr
    assert " sessions of " in done.stdout


def test_a_file_with_other_weights_is_refuted(bundle: Path, tmp_path: Path) -> None:
    reference, moved = bundle / "reference" / "reference.onnx", tmp_path / "moved.onnx"
    model = onnx.load(bundle / "student.onnx")
    weight = model.graph.initializer[0]
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 1.5, weight.name))
    onnx.save(model, moved)
    check = ("--check", bundle / "student.check.npz")
    done = run(*VERIFY, moved, "--reference", reference, *check, without=absent())
    assert done.returncode == 1, done.stderr
    assert re.search(r"structure +pass", done.stdout) and re.search(r"numerics +fail", done.stdout)


def test_another_graph_is_refuted(bundle: Path, tmp_path: Path) -> None:
    model = onnx.load(bundle / "student.onnx")
    next(node for node in model.graph.node if node.op_type == "Relu").op_type = "Sigmoid"
    onnx.save(model, tmp_path / "other.onnx")
    done = run(
        *VERIFY,
        tmp_path / "other.onnx",
        *("--reference", bundle / "reference" / "reference.onnx"),
        *("--check", bundle / "student.check.npz"),
        without=absent(),
    )
    assert done.returncode == 1, done.stderr
    assert re.search(r"structure +fail", done.stdout)


def test_outputs_of_bfloat16(tmp_path: Path) -> None:
    class Rounded(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return -x.bfloat16()

    ports = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [16, 3]),
        helper.make_tensor_value_info("y", TensorProto.BFLOAT16, [16, 3]),
    ]
    nodes = [
        helper.make_node("Neg", ["x"], ["negative"]),
        helper.make_node("Cast", ["negative"], ["y"], to=TensorProto.BFLOAT16),
    ]
    graph = helper.make_graph(nodes, "rounded", ports[:1], ports[1:])
    path = tmp_path / "rounded.onnx"
    opsets = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    x = np.random.default_rng(0).standard_normal((16, 3)).astype(np.float32)
    opdf.write_check_data(Rounded(), path, {"x": x})
    done = run("verify", path, "--only", "numerics", "--device", "cpu", without=absent())
    assert done.returncode == 0, done.stderr + done.stdout


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (("--only", "numerics", "--html", "report.html"), "pip install jinja2 matplotlib"),
        (("--only", "latency", "--plot", "latency.png"), "pip install matplotlib"),
        ((), "which a bundle gets without --only, cannot be drawn without jinja2 and matplotlib"),
    ],
)
def test_what_draws_is_asked_for_before_the_work(
    bundle: Path, options: tuple[str, ...], wanted: str
) -> None:
    done = run("verify", bundle, *options, without=absent())
    assert done.returncode == 2 and wanted in done.stderr
    assert done.stdout == ""
