"""What a verdict depends on besides the two files: versions, device, options in force."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import Any

from opdf_compile.parity.runtime.protocol import Device
from opdf_compile.parity.runtime.registry import DEFAULT, runtime_of
from opdf_compile.version import __version__, installed_version

_LIBRARIES = ("torch", "numpy", "onnx")


def describe_environment(
    device: Device, options: Mapping[str, Any], notes: Sequence[str], precision: str | None = None
) -> dict[str, Any]:
    """The report's `environment`.

    Args:
        device: Where the models ran.
        options: What was asked for.
        notes: What a reader of the verdict should know.
        precision: What the runtime said it computes in; None where nothing was loaded, empty where
            that is the file's own.
    """
    runtime = device.runtime
    return {
        "versions": _versions(device),
        "runtime": {
            "name": runtime.name,
            "version": runtime.version(),
            "precision": precision,
            "precision_asked": device.precision,
        },
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
            "int8_saturation": False,
        },
        "notes": list(notes),
    }


def _versions(device: Device) -> dict[str, str | None]:
    versions = {name: installed_version(name) for name in _LIBRARIES}
    runtimes = {made.name: made.version() for made in (runtime_of(DEFAULT), device.runtime)}
    return {"opdf-compile": __version__, **versions, **runtimes}
