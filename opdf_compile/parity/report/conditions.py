"""What a verdict depends on besides the two files: versions, device, options in force."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import Any

from opdf_compile.parity.runtime.cuda import PACKAGES
from opdf_compile.parity.runtime.sessions import Device
from opdf_compile.version import __version__, installed_version

_LIBRARIES = ("torch", "numpy", "onnx")


def describe_environment(
    device: Device, options: Mapping[str, Any], notes: Sequence[str]
) -> dict[str, Any]:
    """The report's `environment`; the notes are what a reader of the verdict should know."""
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
    versions = {name: installed_version(name) for name in _LIBRARIES}
    runtimes = (installed_version(name) for name in PACKAGES)
    own = {"opdf-compile": __version__}
    return {**own, **versions, "onnxruntime": next((found for found in runtimes if found), None)}
