"""ONNX Runtime sessions: which device, with which options, from a file that was checked first.

Nothing falls back in silence: the runtime drops to the CPU with a log line when CUDA cannot be
loaded, so the provider of every session is looked at after it was made.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from opdf_compile.errors import ArtefactError, DeviceError, InputError
from opdf_compile.parity.model_file import ModelFile, PathLike
from opdf_compile.parity.runtime.ort import tensorrt
from opdf_compile.parity.runtime.ort.cuda import (
    OPTIONS,
    PROVIDER,
    missing_for_cuda,
    short_reason,
)
from opdf_compile.parity.runtime.ort.runtime_log import FATAL_ONLY, quiet_runtime
from opdf_compile.parity.runtime.protocol import Device, Runtime, threads_wanted

if TYPE_CHECKING:
    import onnxruntime

_LOG = logging.getLogger("opdf_compile")
_CPU = "CPUExecutionProvider"
TENSORRT = "tensorrt"
DEVICES = ("cpu", "cuda", TENSORRT)


def resolve(runtime: Runtime, device: str) -> Device:
    """Turn the user's word into a device of this runtime that is known to work.

    Args:
        runtime: ONNX Runtime.
        device: "cpu", "cuda", "tensorrt", or "auto": CUDA where its provider loads, else the CPU.

    Raises:
        DeviceError: What was asked for cannot be used; names the missing piece.
        InputError: Another word.
    """
    if device not in ("auto", *DEVICES):
        raise InputError(
            f"--device {device!r} is unknown; give auto, cpu or cuda, or --runtime "
            f"{runtime.name}:{TENSORRT}"
        )
    if device == "cpu":
        return Device("cpu", _CPU, runtime=runtime)
    if device == TENSORRT:
        return _tensorrt(runtime)
    missing = missing_for_cuda()
    if missing is None:
        because = "asked for" if device == "cuda" else "auto: the CUDA provider loads"
        return Device("cuda", PROVIDER, dict(OPTIONS), because, runtime=runtime)
    if device == "cuda":
        raise DeviceError(
            f"--device cuda was asked for but {missing.piece}; run `opdf-compile doctor` for the "
            "command that mends it, or give --device cpu"
        )
    _LOG.info("device auto: cpu, because %s", missing.piece)
    return Device("cpu", _CPU, {}, f"auto: {missing.piece}", runtime=runtime)


def _tensorrt(runtime: Runtime) -> Device:
    missing = tensorrt.missing_for_tensorrt()
    if missing is not None:
        raise DeviceError(
            f"--runtime {runtime.name}:{TENSORRT} was asked for but {missing.piece}; run "
            "`opdf-compile doctor` for the command that mends it, or give --device cuda or cpu"
        )
    return Device(
        TENSORRT,
        tensorrt.PROVIDER,
        dict(tensorrt.OPTIONS),
        runtime=runtime,
        precision=tensorrt.PRECISION,
    )


def open_session(
    path: PathLike,
    device: Device,
    *,
    threads: int | None = None,
    unsaturated: bool = False,
    optimised: bool = True,
) -> onnxruntime.InferenceSession:
    """Parse and check a file, then make a session for it with so many threads in one operator.

    Args:
        path: The ``.onnx`` file.
        device: Where it runs.
        threads: In one operator; None for every core that this process may use.
        unsaturated: Sums of int8 products as the file means them on every processor. Without VNNI
            an x86 adds two products in 16 bits and cuts off what is larger: faster, and what a
            deployment there does. Where the runtime does not load the file so, a warning says it.
        optimised: Let the runtime rewrite the graph, as it does unless told otherwise.

    Raises:
        ArtefactError: The file is missing, no ONNX model, or the runtime refuses the graph.
        DeviceError: The provider is gone, or has no kernel for an operator of the graph, or cannot
            switch its optimisation off.
    """
    if device.name == TENSORRT and not optimised:
        raise DeviceError(
            f"TensorRT cannot load {path} without its graph optimisation; give --device cuda"
        )
    file = ModelFile.of(path)
    file.require_whole()
    if unsaturated:
        options = _options(threads, device, optimised=optimised)
        options.add_session_config_entry("session.x64quantprecision", "1")
        try:
            return create_session(file, device, options)
        except ArtefactError as error:
            # Without VNNI its rewriting of int8 weights may stumble over a valid graph (1.31.1).
            _LOG.warning(
                "sums of int8 products may be cut off on this processor: with exact ones %s", error
            )
    return create_session(file, device, _options(threads, device, optimised=optimised))


def _options(threads: int | None, device: Device, *, optimised: bool) -> onnxruntime.SessionOptions:
    options = session_options(threads)
    if not optimised:
        options.graph_optimization_level = type(options.graph_optimization_level).ORT_DISABLE_ALL
    if device.name == TENSORRT:
        options.add_session_config_entry(*tensorrt.RECORD_PLACES)
    return options


def write_optimised(source: PathLike, target: Path, device: Device) -> None:
    """Load a file that was checked before, and write down the graph that will run in its place.

    Large constants go to a file beside it, the target's name with ".data".

    Raises:
        ArtefactError: The runtime refuses the graph.
        DeviceError: The provider cannot be used, has no kernel for an operator, or does not tell.
    """
    if device.name == TENSORRT:
        raise DeviceError("TensorRT compiles operators into engines and does not tell what runs")
    options = session_options()
    options.optimized_model_filepath = str(target)
    options.add_session_config_entry(
        "session.optimized_model_external_initializers_file_name",
        f"{target.name}.data",
    )
    # Repacked weights are for kernels that never run here, and are as large as the weights.
    options.add_session_config_entry("session.disable_prepacking", "1")
    create_session(source, device, options)


def session_options(threads: int | None = None) -> onnxruntime.SessionOptions:
    """Options that every session of a check shares.

    Raises:
        InputError: `threads` is not positive.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    # What users deploy.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = threads_wanted(threads)
    options.inter_op_num_threads = 1
    # Two sessions of one process compete for the cores: a pool that spins after its work slows the
    # other session down and the comparison with it.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.log_severity_level = FATAL_ONLY
    return options


def create_session(
    path: PathLike, device: Device, options: onnxruntime.SessionOptions
) -> onnxruntime.InferenceSession:
    """Make a session on exactly this device and translate the runtime's refusals.

    Raises:
        ArtefactError: The runtime refuses the graph.
        DeviceError: The provider cannot be used, or has no kernel for an operator.
    """
    import onnxruntime as ort
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    try:
        with quiet_runtime():
            # Without this it prints, and goes on with other providers.
            session = ort.InferenceSession(
                os.fspath(path), options, providers=_providers(path, device), enable_fallback=0
            )
    except state.NotImplemented as error:
        raise DeviceError(
            f"{device.provider} has no kernel for an operator of {path} ({short_reason(error)}); "
            "choose another --device or export with another --dtype"
        ) from error
    # The runtime's exceptions share no base class but Exception; all of them concern this model.
    except Exception as error:
        raise ArtefactError(
            f"onnxruntime cannot load {path} ({short_reason(error)}); export it again"
        ) from error
    if device.provider not in session.get_providers():
        raise DeviceError(
            f"{device.provider} could not be used for {path} although it loaded before; run "
            "`opdf-compile doctor`, or give --device cpu"
        )
    return session


def _providers(path: PathLike, device: Device) -> list[tuple[str, dict[str, str]] | str]:
    """The device's provider, then those that take the operators which it has no kernel for."""
    if device.name == "cpu":
        return [_CPU]
    options = dict(device.provider_options)
    if device.name != TENSORRT:
        return [(device.provider, options), _CPU]
    caches = tensorrt.options_for(ModelFile.of(path))
    return [(device.provider, {**options, **caches}), (PROVIDER, dict(OPTIONS)), _CPU]
