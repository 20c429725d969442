"""`import opdf_compile` brings in torch and little else; benchmarks/ has the milliseconds."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {
    "accelerate",
    "cv2",
    "lightning",
    "matplotlib",
    "ncnn",
    "networkx",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "onnxscript",
    "openvino",
    "opt_einsum",
    "peft",
    "pydantic",
    "rich",
    "safetensors",
    "sklearn",
    "timm",
    "transformers",
    "typer",
}


STATEMENTS = ("import opdf_compile", "import opdf_compile.cli", "import networkx")


@pytest.fixture(scope="module")
def imported() -> list[set[str]]:
    """Top-level modules on top of torch after each statement, in one fresh interpreter."""
    code = "import sys, torch\nbefore = set(sys.modules)\n"
    for statement in STATEMENTS:
        code += f"{statement}\nprint(*{{m.split('.')[0] for m in set(sys.modules) - before}})\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [set(line.split()) for line in done.stdout.splitlines()]


def test_nothing_heavy_is_imported(imported: list[set[str]]) -> None:
    package, program, _check = imported
    assert "opdf_compile" in package and package & HEAVY == set()
    assert (program & HEAVY) - {"rich", "typer"} == set()


def test_the_check_can_fail(imported: list[set[str]]) -> None:
    assert "networkx" in imported[-1]
