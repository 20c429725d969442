"""What the figures of a parity run depend on: the device, its driver, libraries, the date."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import torch

from bench.facts import date_of_today
from bench.reporting import processor
from opdf_compile import __version__
from opdf_compile.parity.runtime.protocol import Device, Runtime
from opdf_compile.parity.runtime.registry import DEFAULT

_LIBRARIES = ("torch", "timm", "transformers", "numpy", "onnx", "onnxscript")
# Where files lie says nothing about the figures.
_PATHS = ("json", "folder", "models_dir", "plot", "page", "device", "devices")
_RUNTIMES = ("onnxruntime-gpu", "onnxruntime")
_QUERY = ("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")


def machine(device: Device, options: Mapping[str, Any]) -> dict[str, Any]:
    """The `environment` of the JSON.

    Args:
        device: Where the sessions run.
        options: The command line; what JSON cannot hold is written as text.
    """
    runtime = next((found for found in map(_version, _RUNTIMES) if found), None)
    return {
        "date": date_of_today(),
        "device": _cuda() if device.name == "cuda" else {"type": "cpu", "name": processor()},
        "provider": device.provider,
        "provider_options": dict(device.provider_options),
        "versions": {
            "opdf-compile": __version__,
            **{name: _version(name) for name in _LIBRARIES},
            "onnxruntime": runtime,
            **_other_runtime(device.runtime),
        },
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        # Above the number of threads in use, others were at work too.
        "load_average": os.getloadavg()[0],
        "options": {
            key: str(value)
            for key, value in options.items()
            if value is not None and key not in _PATHS
        },
    }


def _other_runtime(judged: Runtime) -> dict[str, str | None]:
    return {} if judged.name == DEFAULT else {judged.name: judged.version()}


def _cuda() -> dict[str, Any]:
    """Name, driver, CUDA and cuDNN of the first device, from torch and the driver's own tool."""
    name, driver = _asked_of_driver()
    found = torch.cuda.is_available()
    return {
        "type": "cuda",
        "name": torch.cuda.get_device_name(0) if found else name,
        "driver": driver,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if found else None,  # type: ignore[no-untyped-call]
    }


def _asked_of_driver() -> tuple[str | None, str | None]:
    if shutil.which(_QUERY[0]) is None:
        return None, None
    done = subprocess.run(_QUERY, capture_output=True, text=True, timeout=30)
    first = next(iter(done.stdout.splitlines()), "")
    name, _, driver = first.partition(", ")
    return name or None, driver or None


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
