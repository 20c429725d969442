"""A session with inputs and outputs bound on their device, and how long its runs take.

Binding keeps copies between host and device out of the measurement. The runtime waits for the
device at the end of every run, before `run_with_iobinding` returns, unless the run options switch
that off (they do not here); the outputs are synchronised once more inside the clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from opdf_compile.errors import first_line
from opdf_compile.parity.runtime.inputs import by_name, does_not_run
from opdf_compile.parity.runtime.ort.runtime_log import quiet_runtime
from opdf_compile.parity.runtime.ort.tensors import to_runtime
from opdf_compile.parity.runtime.protocol import seconds_per_run


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
        return seconds_per_run(self.run, runs)


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
    names = [value.name for value in session.get_inputs()]
    held = {name: to_runtime(array, kind) for name, array in by_name(names, inputs).items()}
    for name, value in held.items():
        binding.bind_ortvalue_input(name, value)
    for output in session.get_outputs():
        binding.bind_output(output.name, kind)
    bound = BoundSession(session, binding, tuple(held.values()))
    try:
        with quiet_runtime():
            bound.run()
    except Exception as error:  # onnxruntime's exceptions share no base but this one.
        raise does_not_run(inputs, first_line(error)) from error
    return bound
