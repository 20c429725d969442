"""A converted file in a net of ncnn: its options, its layers, a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from opdf_compile.errors import DeviceError
from opdf_compile.parity.runtime.held_model import Array, Hold, Run, Stopped
from opdf_compile.parity.runtime.native_log import native_log
from opdf_compile.parity.runtime.nc.conversion import Converted

_HALVES = ("use_fp16_arithmetic", "use_fp16_storage", "use_fp16_packed")
_BRAINS = ("use_bf16_storage", "use_bf16_packed")


def loaded(found: Converted, *, half: bool, threads: int) -> tuple[Hold, str]:
    """Load a converted file.

    Args:
        found: What pnnx wrote.
        half: Leave float16 on.
        threads: In one layer; 0 leaves the number to ncnn.

    Returns:
        What holds it, and the precision that its options allow, read back.

    Raises:
        DeviceError: ncnn has no layer for an operator, or does not load the file.
    """
    import ncnn

    # pnnx leaves what it cannot turn into a layer under its own name.
    unknown = sorted({one.kind for one in found.read() if ncnn.layer_to_index(one.kind) < 0})
    net = ncnn.Net()
    _pin(net.opt, half=half, threads=threads)
    with native_log():
        code = net.load_param(str(found.layers)) or net.load_model(str(found.weights))
    if code:
        reason = f"it has no layer for {', '.join(unknown)}" if unknown else f"it answers {code}"
        raise DeviceError(f"ncnn cannot load {found.file} ({reason}); give another --runtime")

    def hold(arrays: Mapping[str, Array]) -> Run:
        return _hold(net, found, arrays)

    return hold, _precision(net.opt)


def _pin(options: Any, *, half: bool, threads: int) -> None:
    for name in _HALVES:
        setattr(options, name, half)
    for name in _BRAINS:
        setattr(options, name, False)
    options.use_vulkan_compute = False
    if threads:
        options.num_threads = threads


def _precision(options: Any) -> str:
    if any(getattr(options, name) for name in _BRAINS):
        return "bf16"
    return "f16" if any(getattr(options, name) for name in _HALVES) else "f32"


def _hold(net: Any, file: Converted, arrays: Mapping[str, Array]) -> Run:
    """Turn arrays into ncnn's tensors."""
    import ncnn

    narrow = [_narrowed(name, array) for name, array in arrays.items()]
    ends = zip(net.input_names(), narrow, file.batch_in, strict=True)
    # Cloned: a tensor that is made of an array points into it.
    held = {name: ncnn.Mat(array, batch_index=axis).clone() for name, array, axis in ends}

    def run() -> list[Array]:
        # An extractor lives for one run.
        with net.create_extractor() as extractor:
            for name, value in held.items():
                extractor.input(name, value)
            found = [extractor.extract(name) for name in net.output_names()]
            if any(code for code, _ in found):
                raise Stopped(f"ncnn answers {next(code for code, _ in found if code)}")
            ends = zip(found, file.batch_out, strict=True)
            return [np.array(value.numpy(batch_index=axis)) for (_, value), axis in ends]

    return run


def _narrowed(name: str, array: Array) -> Array:
    """Integers in the 32 bits that it has."""
    if array.dtype.kind == "f":
        return array
    narrow = array.astype(np.int32)
    if not np.array_equal(narrow, array):
        raise Stopped(f"input {name!r} has integers of more than 32 bits")
    return narrow
