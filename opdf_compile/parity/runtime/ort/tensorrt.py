"""TensorRT through ONNX Runtime's provider: options, the engine cache, the piece that is missing.

The provider compiles what it takes of a graph into engines and leaves the rest to CUDA and the CPU.
What it left is read back from the session and told.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import os
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from opdf_compile.errors import DeviceError
from opdf_compile.parity.model_file import ModelFile
from opdf_compile.parity.runtime.ort.cuda import (
    installed_with_pip,
    missing_for_cuda,
    pip,
    probe_session,
    short_reason,
)
from opdf_compile.parity.runtime.protocol import Missing

PROVIDER = "TensorrtExecutionProvider"
PRECISION = "float32"
# Where a session records which provider got which node; later than 1.22 of the runtime.
RECORD_PLACES = ("session.record_ep_graph_assignment_info", "1")
# An option of that name does not exist: TensorRT's libraries read this variable, once.
_TF32 = "NVIDIA_TF32_OVERRIDE"
_REDUCED = ("trt_fp16_enable", "trt_bf16_enable", "trt_int8_enable")

# Both models get the same, and the report records it. Defaults are written out, so that another
# version cannot change them in silence.
OPTIONS = {
    "device_id": "0",
    "trt_fp16_enable": "0",
    "trt_int8_enable": "0",
    "trt_sparsity_enable": "0",
    "trt_builder_optimization_level": "3",
    "trt_cuda_graph_enable": "0",
    # Building an engine takes seconds to minutes, and a check makes dozens of sessions of a file.
    "trt_engine_cache_enable": "1",
    # A builder takes the kernels that were fastest when it timed them. Timings that both files
    # share give equal layers equal kernels; else the verdict on latency would be that of a draw.
    "trt_timing_cache_enable": "1",
}


@functools.cache
def missing_for_tensorrt() -> Missing | None:
    """The missing piece; None when a session really runs on TensorRT.

    Raises:
        DeviceError: No onnxruntime is installed at all.
    """
    # It needs the same package, driver, GPU and libraries first.
    missing = missing_for_cuda()
    if missing is not None:
        return missing
    import onnxruntime as ort

    if PROVIDER not in ort.get_available_providers():
        return Missing(
            "the installed onnxruntime is built without TensorRT",
            pip("install --force-reinstall onnxruntime-gpu"),
        )
    switched = os.environ.setdefault(_TF32, "0")
    if switched != "0":
        return Missing(
            f"{_TF32} is {switched!r}, with which TensorRT computes in TF32",
            f"unset {_TF32}, or set it to 0, before Python starts",
        )
    # The wheel's libraries are in no folder that the loader looks into; its import loads them.
    with contextlib.suppress(ImportError, OSError):
        importlib.import_module("tensorrt_libs")
    return _session(ort)


def _session(ort: Any) -> Missing | None:
    try:
        session = probe_session(ort, PROVIDER, {"device_id": "0"})
    # The runtime's exceptions share no base class of their own.
    except Exception as error:
        reason = short_reason(error)
        return Missing(f"the TensorRT provider cannot start ({reason})", _libraries(ort))
    if PROVIDER in session.get_providers():
        return None
    found = installed_with_pip("tensorrt-cu13", "tensorrt-cu12", "tensorrt")
    beside = f"; the installed one is TensorRT {found}" if found else ""
    return Missing(
        f"the TensorRT provider does not load (a library is missing or does not fit{beside})",
        _libraries(ort),
    )


def _libraries(ort: Any) -> str:
    built_for = str(getattr(ort, "cuda_version", "") or "").split(".")[0]
    wheel = f"tensorrt-cu{built_for}" if built_for else "tensorrt"
    command = pip(f"install '{wheel}==10.*'")
    return f"{command}, or the major version that the installed onnxruntime was built with"


def options_for(file: ModelFile) -> dict[str, str]:
    """The caches of one file; engines apart from those of all others, timings shared."""
    place = _place()
    engines = place / stamp_of(file)
    engines.mkdir(exist_ok=True)
    return {"trt_engine_cache_path": str(engines), "trt_timing_cache_path": str(place)}


def stamp_of(file: ModelFile) -> str:
    """Names the very bytes of a file and of what it keeps beside it.

    The provider finds engines by the names of the file and of its nodes, not by the weights: two
    students of one architecture would be given each other's.
    """
    parts = [str(file.path.resolve()), file.sha256]
    for name in file.external_files:
        beside = (file.path.parent / name).stat()
        parts.append(f"{name} {beside.st_size} {beside.st_mtime_ns}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


@functools.cache
def _cache() -> tempfile.TemporaryDirectory[str]:
    """Lives as long as the process: an engine of yesterday is that of another driver or tuning."""
    return tempfile.TemporaryDirectory(prefix="opdf-tensorrt-", ignore_cleanup_errors=True)


def _place() -> Path:
    return Path(_cache().name)


def precision_in_force(session: Any) -> str:
    """What the provider says that it may compute in."""
    options = session.get_provider_options().get(PROVIDER, {})
    allowed = [name.split("_")[1] for name in _REDUCED if str(options.get(name, "0")) != "0"]
    return f"{PRECISION}, but {' and '.join(allowed)} allowed" if allowed else PRECISION


def fallback_of(session: Any, file: ModelFile) -> str:
    """Which operators run elsewhere, as a clause; empty where none does.

    Raises:
        DeviceError: All of them do.
    """
    try:
        parts = session.get_provider_graph_assignment_info()
    except AttributeError:
        return "this version of the runtime does not tell which operators TensorRT leaves to CUDA"
    placed = [(part.ep_name, node.op_type) for part in parts for node in part.get_nodes()]
    left = [(provider, kind) for provider, kind in placed if provider != PROVIDER]
    if placed and len(left) == len(placed):
        raise DeviceError(
            f"TensorRT takes no operator of {file}, all of them would run on CUDA or the CPU; give "
            "--device cuda"
        )
    told = [
        f"{number} on {provider} ({', '.join(sorted({k for p, k in left if p == provider}))})"
        for provider, number in sorted(Counter(provider for provider, _ in left).items())
    ]
    return f"of {len(placed)} operators {' and '.join(told)}" if told else ""
