"""Every runtime that reads ONNX files and keeps their precision, as parameters of a test."""

from __future__ import annotations

import pytest

from opdf_compile.parity.runtime.registry import runtime_names, runtime_of

# The one runs programs of its own, the other computes in half precision.
_OTHER = ("executorch", "ncnn-fp16")


def processor(name: str) -> str:
    """The word for a runtime's processor, whatever it calls it."""
    return "cpu" if "cpu" in runtime_of(name).devices() else "auto"


def _parameter(name: str) -> object:
    missing = runtime_of(name).missing("cpu")
    reason = "" if missing is None else missing.piece
    return pytest.param(name, marks=pytest.mark.skipif(missing is not None, reason=reason))


everywhere = pytest.mark.parametrize(
    "runtime", [_parameter(name) for name in runtime_names() if name not in _OTHER]
)
