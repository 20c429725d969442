"""Runs sessions with inputs and outputs bound on their device, warms them up, times blocks of runs.

Binding keeps copies between host and device out of the measurement; the runtime finishes a run's
work on the device before `run_with_iobinding` returns, and the outputs are synchronised once more
inside the clock.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from opdf_compile.errors import InputError

# Long enough for any clock, and shorter than another process's turn on a core: then the blocks of a
# round meet the same machine. Measured with a busy neighbour, 1 ms gave intervals half as long as
# 4 ms in the same time.
BLOCK_SECONDS = 0.001
MOST_RUNS = 2000
# Warm-up: windows of runs until the median stops falling by more than 1 %.
_WINDOW_SECONDS = 0.01
_STILL_FALLING = 0.99
_MOST_WINDOWS = 20


@dataclass(frozen=True)
class BoundSession:
    """A session with its inputs on the device, ready to run.

    Attributes:
        session: The onnxruntime session.
        binding: Its inputs and outputs.
    """

    session: Any
    binding: Any

    def run(self) -> None:
        """Run once and wait for the outputs."""
        self.session.run_with_iobinding(self.binding)
        self.binding.synchronize_outputs()

    def seconds(self, runs: int) -> float:
        """Seconds per run over a block of runs."""
        run = self.run
        begin = time.perf_counter_ns()
        for _ in range(runs):
            run()
        # At least one tick, so that a coarse clock gives a ratio and no division by zero.
        return max(1, time.perf_counter_ns() - begin) / runs * 1e-9


def bind(session: Any, inputs: Mapping[str, Any], device: str) -> BoundSession:
    """Put the inputs on the device and let the runtime keep the outputs there.

    Args:
        session: An onnxruntime session.
        inputs: Arrays by input name; bfloat16 as ml_dtypes' type.
        device: "cpu" or "cuda".

    Raises:
        InputError: The model cannot run on these inputs.
    """
    binding = session.io_binding()
    kind = device.split(":")[0]
    for name, array in _by_name(session, inputs).items():
        binding.bind_ortvalue_input(name, _on_device(array, kind))
    for output in session.get_outputs():
        binding.bind_output(output.name, kind)
    bound = BoundSession(session, binding)
    try:
        bound.run()
    except Exception as error:  # onnxruntime's exceptions share no base but this one.
        reason = str(error).strip().splitlines()[0][:200]
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
        raise InputError(
            f"the model does not run on the inputs {shapes} ({reason}); give check data with "
            "inputs that it takes (check=)"
        ) from error
    return bound


def warm_up(session: BoundSession) -> float:
    """Run until the median stops falling.

    Returns:
        Seconds per run of the last window.
    """
    single = min(session.seconds(1) for _ in range(2))
    window = max(3, min(MOST_RUNS, round(_WINDOW_SECONDS / max(single, 1e-9))))
    before = _window_median(session, window)
    for _ in range(_MOST_WINDOWS):
        now = _window_median(session, window)
        if now >= before * _STILL_FALLING:
            return now
        before = now
    return before


def runs_per_block(seconds: float) -> int:
    """How many runs make one block long enough for the clock.

    Args:
        seconds: Time of one run.
    """
    return max(1, min(MOST_RUNS, round(BLOCK_SECONDS / max(seconds, 1e-9))))


def settle(session: BoundSession, runs: int) -> None:
    """One untimed run where runs are short: caches still hold the session that ran before."""
    if runs > 1:
        session.run()


@contextmanager
def undisturbed() -> Iterator[None]:
    """Keep Python's garbage collector out of the measurement."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _window_median(session: BoundSession, runs: int) -> float:
    return statistics.median(session.seconds(1) for _ in range(runs))


def _by_name(session: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs under the session's names; by position where the two models name them differently."""
    names = [value.name for value in session.get_inputs()]
    if set(names) <= set(inputs):
        return {name: inputs[name] for name in names}
    if len(names) != len(inputs):
        raise InputError(
            f"the inputs are {', '.join(inputs) or 'none'}, the model wants "
            f"{', '.join(names) or 'none'}; give check data of this model (check=)"
        )
    return dict(zip(names, inputs.values(), strict=True))


def _on_device(array: Any, kind: str) -> Any:
    import onnxruntime as ort

    array = np.ascontiguousarray(array)
    if array.dtype.name == "bfloat16":
        from onnx import TensorProto

        # numpy knows no bfloat16; the runtime takes its bits with the type beside them, in host
        # memory only, so both models pay for one copy of the inputs per run.
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(
            array.view(np.uint16), TensorProto.BFLOAT16
        )
    return ort.OrtValue.ortvalue_from_numpy(array, kind, 0)
