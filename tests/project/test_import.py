"""`import opdf_compile` brings in torch and little else; benchmarks/ has the milliseconds."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {
    "accelerate",
    "lightning",
    "matplotlib",
    "networkx",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "onnxscript",
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


def imported_by(statement: str) -> set[str]:
    """Top-level modules that a statement imports on top of torch, in a fresh interpreter."""
    code = (
        "import sys, torch\nbefore = set(sys.modules)\n"
        f"{statement}\nprint(*{{m.split('.')[0] for m in set(sys.modules) - before}})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["opdf_compile", "opdf_compile.cli"])
def test_nothing_heavy_is_imported(module: str) -> None:
    allowed = {"rich", "typer"} if module.endswith("cli") else set()
    assert (imported_by(f"import {module}") & HEAVY) - allowed == set()


def test_the_check_can_fail() -> None:
    assert "networkx" in imported_by("import networkx")
