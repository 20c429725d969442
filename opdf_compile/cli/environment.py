"""What `doctor` finds: versions, devices, execution providers and conflicts."""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from opdf_compile.extras import requirements_of
from opdf_compile.version import __version__, installed_version

if TYPE_CHECKING:
    from opdf_compile.parity import Runtime

Level = Literal["ok", "note", "problem"]

BASE = (
    "torch",
    "onnx",
    "onnxscript",
    "onnx-ir",
    "networkx",
    "opt_einsum",
    "safetensors",
    "numpy",
    "pydantic",
    "matplotlib",
)
# Distribution -> the extra that brings it.
OPTIONAL = {
    "timm": "zoo",
    "transformers": "zoo",
    "scikit-learn": "demo",
    "accelerate": "distill",
}
RUNTIMES = ("onnxruntime-gpu", "onnxruntime")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: What it is.
        found: What was found.
        level: "ok", "note" (the main job runs without it) or "problem".
        remedy: The command or step that mends it; empty when there is nothing to mend.
    """

    name: str
    found: str
    level: Level = "ok"
    remedy: str = ""


def examine() -> list[Finding]:
    """Everything that `doctor` shows, in its order."""
    python = Finding("python", f"{platform.python_version()} on {platform.platform()}")
    packages = [_itself(), *(_package(n, "problem", _pip(f"install {n}")) for n in BASE)]
    extras = [
        _package(name, "note", _pip(f"install {requirements_of(extra)}"))
        for name, extra in OPTIONAL.items()
    ]
    devices = [*_providers(), *_accelerators(), _torch_device()]
    return [python, *packages, _runtime(), *devices, *_runtimes(), _torchvision(), *extras]


def _pip(arguments: str) -> str:
    return f"{sys.executable} -m pip {arguments}"


def _itself() -> Finding:
    if installed_version("opdf-compile"):
        return Finding("opdf-compile", __version__)
    return Finding("opdf-compile", f"{__version__}, from its source tree, not installed", "note")


def _package(name: str, otherwise: Level, remedy: str) -> Finding:
    found = installed_version(name)
    return Finding(name, found) if found else Finding(name, "not installed", otherwise, remedy)


def _runtime() -> Finding:
    """Whether exactly one of the two packages that overwrite each other is installed."""
    installed = {name: found for name in RUNTIMES if (found := installed_version(name))}
    if not installed:
        return Finding(
            "onnxruntime",
            "not installed",
            "problem",
            _pip(f"install {requirements_of('gpu')}"),
        )
    found = ", ".join(f"{name} {number}" for name, number in installed.items())
    if len(installed) == 1:
        return Finding("onnxruntime", found)
    # Uninstalling either one alone deletes files of the other.
    remedy = (
        _pip("uninstall -y onnxruntime onnxruntime-gpu") + " && " + _pip("install onnxruntime-gpu")
    )
    return Finding("onnxruntime", f"{found}: they overwrite each other", "problem", remedy)


def _providers() -> list[Finding]:
    if not any(installed_version(name) for name in RUNTIMES):
        return []
    try:
        import onnxruntime
    except ImportError as error:
        remedy = _pip("install --force-reinstall onnxruntime-gpu")
        return [Finding("execution providers", f"cannot load: {error}", "problem", remedy)]
    return [Finding("execution providers", ", ".join(onnxruntime.get_available_providers()))]


def _accelerators() -> list[Finding]:
    """Whether the default runtime's accelerators work, else the missing piece and what mends it."""
    if not any(installed_version(name) for name in RUNTIMES):
        return []
    from opdf_compile.errors import DeviceError
    from opdf_compile.parity import missing_for_cuda, missing_for_tensorrt

    asked = {
        "--device cuda": missing_for_cuda,
        "--runtime onnxruntime:tensorrt": missing_for_tensorrt,
    }
    try:
        pieces = {name: missing() for name, missing in asked.items()}
    except DeviceError:  # The finding before this one says that the runtime cannot be imported.
        return []
    return [
        Finding(name, f"not available: {piece.piece}", "note", piece.remedy)
        if piece
        else Finding(name, "works: a session ran on it")
        for name, piece in pieces.items()
    ]


def _runtimes() -> list[Finding]:
    """The runtimes of `--runtime` beside the default one, whose pieces are findings above."""
    from opdf_compile.errors import error_line
    from opdf_compile.parity import runtime_names, runtime_of

    found = []
    for name in runtime_names()[1:]:
        try:
            found.append(_of_runtime(runtime_of(name)))
        except Exception as error:  # Another package's code, which may be broken in any way.
            found.append(Finding(f"--runtime {name}", error_line(error), "note"))
    return found


def _of_runtime(runtime: Runtime) -> Finding:
    missing = {device: runtime.missing(device) for device in runtime.devices()}
    usable = [device for device, piece in missing.items() if piece is None]
    name, first = f"--runtime {runtime.name}", next(iter(missing.values()), None)
    if usable or first is None:
        said = ", ".join(
            device if piece is None else f"{device} not available: {piece.piece}"
            for device, piece in missing.items()
        )
        return Finding(name, f"{runtime.version() or 'unknown version'} ({said})")
    return Finding(name, f"not available: {first.piece}", "note", first.remedy)


def _torch_device() -> Finding:
    if not installed_version("torch"):
        return Finding("cuda", "unknown: torch is not installed", "note")
    import torch

    if torch.cuda.is_available():
        return Finding("cuda", f"{torch.cuda.get_device_name()} (CUDA {torch.version.cuda})")
    built = torch.version.cuda
    found = "no CUDA device" if built else "torch is built without CUDA"
    return Finding("cuda", f"{found}: models run on the CPU", "note")


def _torchvision() -> Finding:
    """Whether torchvision's compiled operators load; timm and transformers import it."""
    found = installed_version("torchvision")
    if not found:
        return Finding("torchvision", "not installed", "note")
    try:
        import torchvision.ops  # noqa: F401
    except (ImportError, RuntimeError, AttributeError, OSError) as error:
        reason = " ".join(str(error).split())[:120]
        return Finding(
            "torchvision",
            f"{found}, whose compiled operators do not load ({reason}); timm: and hf: models "
            "work without them",
            "note",
            "install the torchvision that was built for this torch",
        )
    return Finding("torchvision", found)
