"""An ExecuTorch program beside the ONNX file that it was made with: ``X.pte`` beside ``X.onnx``.

The program runs, the ONNX file says what it is: names, shapes, structure. So that no program stands
beside a file of other weights, it holds the file's hash.
"""

from __future__ import annotations

from pathlib import Path

# A method of the program that takes nothing and answers the hash of its ONNX file.
ONNX_HASH = "onnx_sha256"


def pte_path(onnx_path: Path) -> Path:
    """Where the program of an ONNX file lies: ``student.onnx`` -> ``student.pte``."""
    return onnx_path.with_suffix(".pte")
