"""ONNX Runtime sessions: which device, with which options, from a file that was checked first.

Nothing falls back in silence: the runtime drops to the CPU with a log line when CUDA cannot be
loaded, so the provider of every session is looked at after it was made.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from opdf_compile.errors import ArtefactError, DeviceError, InputError
from opdf_compile.verify.runtime.loading import load_onnx

if TYPE_CHECKING:
    import onnxruntime

DeviceName = Literal["auto", "cpu", "cuda"]
Optimisation = Literal["all", "basic", "none"]

_LOG = logging.getLogger("opdf_compile")
_CPU = "CPUExecutionProvider"
_CUDA = "CUDAExecutionProvider"

# TF32 keeps 10 mantissa bits, an error of 1e-3 that no export is to blame for. The algorithm search
# is the runtime's own default, written out so that the report records what was in force.
_CUDA_OPTIONS = {"use_tf32": "0", "cudnn_conv_algo_search": "EXHAUSTIVE"}

_FATAL_ONLY = 4


@dataclass(frozen=True)
class Device:
    """Where sessions run, and why there.

    Attributes:
        name: "cpu" or "cuda".
        provider: The runtime's name of the execution provider.
        provider_options: Options that are pinned for every session, as strings.
        chosen_because: One clause for the report ("asked for", "auto: no NVIDIA driver ...").
    """

    name: Literal["cpu", "cuda"]
    provider: str
    provider_options: Mapping[str, str] = field(default_factory=dict)
    chosen_because: str = "asked for"


def resolve_device(device: str = "auto") -> Device:
    """Turn the user's word into a device that is known to work.

    Args:
        device: "cpu", "cuda", or "auto": CUDA where its provider loads, else the CPU.

    Raises:
        DeviceError: "cuda" was asked for and cannot be used; names the missing piece.
        InputError: Another word.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"--device {device!r} is unknown; give auto, cpu or cuda")
    if device == "cpu":
        return Device("cpu", _CPU)
    missing = _missing_for_cuda()
    if missing is None:
        because = "asked for" if device == "cuda" else "auto: the CUDA provider loads"
        return Device("cuda", _CUDA, dict(_CUDA_OPTIONS), because)
    if device == "cuda":
        raise DeviceError(
            f"--device cuda was asked for but {missing}; run `opdf-compile doctor` for the command "
            "that mends it, or give --device cpu"
        )
    _LOG.info("device auto: cpu, because %s", missing)
    return Device("cpu", _CPU, {}, f"auto: {missing}")


def open_session(
    path: str | os.PathLike[str],
    device: Device,
    *,
    threads: int | None = None,
    optimisation: Optimisation = "all",
) -> onnxruntime.InferenceSession:
    """Make a session for a file that was parsed and checked before.

    Args:
        path: The ONNX file.
        device: From `resolve_device`.
        threads: Threads within one operator; None leaves the choice to the runtime.
        optimisation: How far the runtime may rewrite the graph; "all" is what users deploy.

    Raises:
        ArtefactError: The file is missing, no ONNX model, or the runtime refuses the graph.
        DeviceError: The provider is gone, or has no kernel for an operator of the graph.
    """
    load_onnx(path)
    return create_session(
        os.fspath(path), device, session_options(threads, optimisation), str(path)
    )


def session_options(
    threads: int | None = None, optimisation: Optimisation = "all"
) -> onnxruntime.SessionOptions:
    """Options that every session of a check shares.

    Raises:
        InputError: `threads` is not positive.
    """
    import onnxruntime as ort

    if threads is not None and threads < 1:
        raise InputError(f"threads is {threads}; a number from 1 up was wanted")
    levels = {
        "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
        "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
        "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    }
    options = ort.SessionOptions()
    options.graph_optimization_level = levels[optimisation]
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    # Two sessions of one process compete for the cores: a pool that spins after its work slows the
    # other session down and the comparison with it.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.log_severity_level = _FATAL_ONLY
    return options


def create_session(
    source: str | bytes, device: Device, options: onnxruntime.SessionOptions, what: str
) -> onnxruntime.InferenceSession:
    """Make a session on exactly this device and translate the runtime's refusals.

    Args:
        source: A path, or a serialised model.
        device: Where it must run.
        options: From `session_options`.
        what: The model's name in messages.

    Raises:
        ArtefactError: The runtime refuses the graph.
        DeviceError: The provider cannot be used, or has no kernel for an operator.
    """
    import onnxruntime as ort
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    providers: list[tuple[str, dict[str, str]] | str] = (
        [_CPU] if device.name == "cpu" else [(device.provider, dict(device.provider_options)), _CPU]
    )
    try:
        with _quiet_runtime():
            session = ort.InferenceSession(source, options, providers=providers)
    except state.NotImplemented as error:
        raise DeviceError(
            f"{device.provider} has no kernel for an operator of {what} ({_short(error)}); choose "
            "another --device or export with another --dtype"
        ) from error
    # The runtime's exceptions share no base class but Exception; all of them concern this model.
    except Exception as error:
        raise ArtefactError(
            f"onnxruntime cannot load {what} ({_short(error)}); export it again"
        ) from error
    if device.provider not in session.get_providers():
        raise DeviceError(
            f"{device.provider} could not be used for {what} although it loaded before; run "
            "`opdf-compile doctor`, or give --device cpu"
        )
    return session


def _short(error: Exception) -> str:
    """The runtime's reason on one line without its code prefix."""
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : ", "", " ".join(str(error).split()))
    return text if len(text) <= 300 else f"{text[:297]}..."


@functools.cache
def _missing_for_cuda() -> str | None:
    """Name what keeps the CUDA provider from being used; None when a session really runs on it."""
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise DeviceError(
            "onnxruntime is not installed, so no ONNX can be run; install opdf-compile[gpu] or "
            "opdf-compile[cpu]"
        ) from error
    if _CUDA not in ort.get_available_providers():
        return "the installed onnxruntime has no CUDA provider (it is the CPU package)"
    if not _loads("nvcuda.dll" if os.name == "nt" else "libcuda.so.1"):
        return "no NVIDIA driver was found (libcuda cannot be loaded)"
    said = _preload(ort)
    with _quiet_runtime():
        try:
            session = ort.InferenceSession(
                _probe_model(), session_options(), providers=[(_CUDA, _CUDA_OPTIONS)]
            )
        # As in create_session: the runtime's exceptions share no base class of their own.
        except Exception as error:
            return f"the CUDA provider cannot start ({_short(error)})"
    if _CUDA in session.get_providers():
        return None
    library = re.search(r"(lib\w+\.so[.\d]*|\w+\.dll)", said)
    piece = f"the CUDA library {library.group(1)}" if library else "a CUDA or cuDNN library"
    return f"the CUDA provider does not load ({piece} is missing or does not fit)"


def _preload(ort: object) -> str:
    """Let onnxruntime find the CUDA libraries that torch's wheels brought; return what it said."""
    preload = getattr(ort, "preload_dlls", None)
    if preload is None:
        return ""
    # It reports failures with print, and a library may not print.
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        preload()
    return said.getvalue()


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _quiet_runtime() -> Iterator[None]:
    """Silence the runtime's process-wide logger while its failure becomes our sentence."""
    import onnxruntime as ort

    warnings_and_worse = 2
    ort.set_default_logger_severity(_FATAL_ONLY)
    try:
        yield
    finally:
        ort.set_default_logger_severity(warnings_and_worse)


def _probe_model() -> bytes:
    """The smallest graph that the CUDA provider computes: one float addition."""
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])], "probe", value[:1], value[1:]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())
