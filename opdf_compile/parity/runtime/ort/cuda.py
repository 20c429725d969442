"""What CUDA sessions need: the options that are pinned, and the piece that is missing, if any.

The pieces are looked at in the order in which they build on each other: one runtime package, built
with CUDA; a driver; a GPU that it shows; a driver that is new enough; the CUDA and cuDNN libraries.
A probe session has the last word.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import os
import re
import sys
from collections.abc import Mapping
from typing import Any

from opdf_compile.errors import DeviceError
from opdf_compile.extras import requirements_of
from opdf_compile.parity.runtime.driver import DRIVER, load_library
from opdf_compile.parity.runtime.ort.runtime_log import FATAL_ONLY, quiet_runtime
from opdf_compile.parity.runtime.protocol import Missing
from opdf_compile.version import installed_version

PROVIDER = "CUDAExecutionProvider"

# Both models get the same, and the report records it. What is the runtime's default is written out,
# so that another version cannot change it in silence.
OPTIONS = {
    "device_id": "0",
    # TF32 keeps 10 mantissa bits, an error of 1e-3 that no export is to blame for.
    "use_tf32": "0",
    # The exhaustive search times every algorithm once and takes the one that happened to be
    # fastest, so two sessions of one file differ, and every session costs seconds. The heuristic is
    # a function of the shapes alone.
    "cudnn_conv_algo_search": "HEURISTIC",
    "cudnn_conv_use_max_workspace": "1",
    # Doubling the arena would report up to twice the memory that a session needs.
    "arena_extend_strategy": "kSameAsRequested",
    "do_copy_in_default_stream": "1",
    "prefer_nhwc": "0",
    "enable_cuda_graph": "0",
    "tunable_op_enable": "0",
}

# The same import name comes from several distributions.
PACKAGES = ("onnxruntime-gpu", "onnxruntime")
# Since CUDA 13 without a number; two of them beside each other are rare, and the newest then leads.
_LIBRARIES = ("nvidia-cuda-runtime", "nvidia-cuda-runtime-cu12", "nvidia-cuda-runtime-cu11")


@functools.cache
def missing_for_cuda() -> Missing | None:
    """The missing piece; None when a session really runs on CUDA.

    Raises:
        DeviceError: No onnxruntime is installed at all.
    """
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise DeviceError(
            "onnxruntime is not installed, so no ONNX can be run; pip install "
            f"{requirements_of('gpu')} (or onnxruntime, on platforms without it)"
        ) from error
    found = _package(ort) or _driver(str(getattr(ort, "cuda_version", "") or ""))
    return found or _session(ort)


def _package(ort: Any) -> Missing | None:
    """Whether the installed package has the provider at all."""
    if PROVIDER in ort.get_available_providers():
        return None
    if all(map(installed_version, PACKAGES)):
        return Missing(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other",
            f"{pip('uninstall -y onnxruntime onnxruntime-gpu')} && "
            f"{pip('install onnxruntime-gpu')}",
        )
    return Missing(
        "the installed onnxruntime has no CUDA provider (it is the CPU package)",
        f"{pip('uninstall -y onnxruntime')} && {pip('install onnxruntime-gpu')}",
    )


def _driver(built_for: str) -> Missing | None:
    """Whether there is a driver, with a GPU, and new enough for the runtime's CUDA version."""
    driver = load_library(DRIVER)
    if driver is None:
        return Missing(
            f"no NVIDIA driver was found ({DRIVER.split('.')[0]} cannot be loaded)",
            "install the NVIDIA driver; in a container, start it with GPU access "
            "(docker run --gpus all)",
        )
    count, version = ctypes.c_int(0), ctypes.c_int(0)
    started = driver.cuInit(0)
    if started != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        because = "" if hidden is None else f"; CUDA_VISIBLE_DEVICES is {hidden!r}"
        return Missing(
            f"the NVIDIA driver shows no GPU (cuInit answers {started}{because})",
            "run nvidia-smi: it must list a GPU; set CUDA_VISIBLE_DEVICES to its number, or unset "
            "it",
        )
    wanted = int(built_for.split(".")[0]) if re.match(r"\d+\.", built_for) else 0
    if driver.cuDriverGetVersion(ctypes.byref(version)) == 0 and version.value // 1000 < wanted:
        return Missing(
            f"the NVIDIA driver supports CUDA {version.value // 1000}."
            f"{version.value % 1000 // 10}, and the installed onnxruntime is built for CUDA "
            f"{built_for}",
            "install a newer NVIDIA driver, or an onnxruntime-gpu that is built for the driver's "
            "CUDA version",
        )
    return None


def _session(ort: Any) -> Missing | None:
    """Whether a session runs on the provider; the runtime falls back with a log line at most."""
    said = _preload(ort)
    try:
        session = probe_session(ort, PROVIDER, OPTIONS)
    # The runtime's exceptions share no base class of their own.
    except Exception as error:
        return Missing(
            f"the CUDA provider cannot start ({short_reason(error)})",
            "run nvidia-smi: it must list a GPU with free memory",
        )
    if PROVIDER in session.get_providers():
        return None
    return _library(said, str(getattr(ort, "cuda_version", "") or ""))


def probe_session(ort: Any, provider: str, options: Mapping[str, str]) -> Any:
    """A session of the smallest model, on this provider where it loads."""
    with quiet_runtime():
        settings = ort.SessionOptions()
        settings.log_severity_level = FATAL_ONLY
        return ort.InferenceSession(
            _probe_model(), settings, providers=[(provider, options)], enable_fallback=0
        )


def _library(said: str, built_for: str) -> Missing:
    """Name the library from what the runtime printed when it looked for all of them."""
    names = re.findall(r"(lib\w+\.so[.\d]*|\w+\.dll)", said)
    cudnn = next((name for name in names if "cudnn" in name), None)
    name = cudnn or (names[0] if names else None)
    piece = f"the CUDA library {name}" if name else "a CUDA or cuDNN library"
    if cudnn:
        piece = f"the cuDNN library {cudnn}"
    versions = f"; onnxruntime is built for CUDA {built_for}" if built_for else ""
    theirs = _brought_cuda()
    if built_for and theirs and theirs.split(".")[0] != built_for.split(".")[0]:
        versions += f", the installed libraries are those of CUDA {theirs}"
    return Missing(
        f"the CUDA provider does not load ({piece} is missing or does not fit{versions})",
        pip("install 'onnxruntime-gpu[cuda,cudnn]'"),
    )


def short_reason(error: Exception) -> str:
    """The runtime's reason on one line without its code prefix."""
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : ", "", " ".join(str(error).split()))
    return text if len(text) <= 300 else f"{text[:297]}..."


def pip(arguments: str) -> str:
    """The command that has pip do something to this environment."""
    return f"{sys.executable} -m pip {arguments}"


def installed_with_pip(*names: str) -> str | None:
    """The version of the first of several distributions that is installed."""
    return next((found for name in names if (found := installed_version(name))), None)


def _brought_cuda() -> str | None:
    """The version of the CUDA libraries that were installed with pip, mostly by torch."""
    return installed_with_pip(*_LIBRARIES)


def _preload(ort: Any) -> str:
    """Let onnxruntime find the CUDA libraries that torch's wheels brought; return what it said."""
    preload = getattr(ort, "preload_dlls", None)
    if preload is None:
        return ""
    # It reports failures with print, and a library may not print.
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        preload()
    return said.getvalue()


def _probe_model() -> bytes:
    """The smallest graph that the CUDA provider computes: one float addition."""
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])], "probe", value[:1], value[1:]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())
