"""What a verdict depends on besides the two files: versions, device, options in force."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from opdf_compile.parity.runtime.sessions import Device
from opdf_compile.version import __version__

_LIBRARIES = ("torch", "numpy", "onnx")
# The same import name comes from several distributions.
_RUNTIMES = ("onnxruntime-gpu", "onnxruntime")


def describe_environment(
    device: Device, options: Mapping[str, Any], notes: Sequence[str]
) -> dict[str, Any]:
    """The report's `environment`.

    Args:
        device: Where sessions ran.
        options: What the caller asked for.
        notes: Sentences that a reader of the verdict should know.
    """
    return {
        "versions": _versions(),
        "platform": {
            "system": platform.system(),
            "machine": platform.machine(),
            "python": platform.python_version(),
        },
        "device": {
            "name": device.name,
            "provider": device.provider,
            "provider_options": dict(device.provider_options),
            "chosen_because": device.chosen_because,
        },
        "options": {
            **options,
            "graph_optimisation": "all",
            "spinning": False,
            "tf32": False,
        },
        "notes": list(notes),
    }


def _versions() -> dict[str, str | None]:
    versions = {name: _version(name) for name in _LIBRARIES}
    runtimes = (_version(name) for name in _RUNTIMES)
    own = {"opdf-compile": __version__}
    return {**own, **versions, "onnxruntime": next((found for found in runtimes if found), None)}


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
