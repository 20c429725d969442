"""A session with inputs and outputs bound on their device, and how long its runs take.

Binding keeps copies between host and device out of the measurement. The runtime waits for the
device at the end of every run, before `run_with_iobinding` returns, unless the run options switch
that off (they do not here); the outputs are synchronised once more inside the clock.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from opdf_compile.errors import InputError, first_line
from opdf_compile.parity.runtime.runtime_log import quiet_runtime
from opdf_compile.parity.runtime.tensors import to_runtime


@dataclass(frozen=True)
class BoundSession:
    """A session with its inputs on the device, ready to run.

    Attributes:
        session: The onnxruntime session.
        binding: Its inputs and outputs.
        inputs: What the binding points into and must outlive it.
    """

    session: Any
    binding: Any
    inputs: tuple[Any, ...] = ()

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
    held = {name: to_runtime(array, kind) for name, array in _by_name(session, inputs).items()}
    for name, value in held.items():
        binding.bind_ortvalue_input(name, value)
    for output in session.get_outputs():
        binding.bind_output(output.name, kind)
    bound = BoundSession(session, binding, tuple(held.values()))
    try:
        with quiet_runtime():
            bound.run()
    except Exception as error:  # onnxruntime's exceptions share no base but this one.
        reason = first_line(error)
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
        raise InputError(
            f"the model does not run on the inputs {shapes} ({reason}); give check data with "
            "inputs that it takes (check=)"
        ) from error
    return bound


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
