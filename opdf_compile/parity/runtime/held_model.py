"""A model of a runtime that takes inputs, runs, and gives outputs back, on the processor.

    read   -> hold            the file as the runtime holds it
    hold(arrays) -> run       its inputs in place
    run()  -> arrays          the outputs in the file's order

`run` may be called again and again; what any of them raises for a user to read is `Stopped`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from opdf_compile.parity.model_file import ModelFile
from opdf_compile.parity.runtime.inputs import by_name, does_not_run, misfit_of
from opdf_compile.parity.runtime.protocol import RunFailed, seconds_per_run

Array = np.ndarray[Any, Any]
Run = Callable[[], list[Array]]
Hold = Callable[[Mapping[str, Array]], Run]


class Stopped(Exception):
    """The model does not run; says why in one clause."""


@dataclass(frozen=True)
class Held:
    """A model with its inputs in place.

    Attributes:
        outputs: Runs it.
    """

    outputs: Run

    def run(self) -> None:
        """Run once; the outputs are new arrays each time."""
        self.outputs()

    def seconds(self, runs: int) -> float:
        """Seconds per run over a block of runs."""
        return seconds_per_run(self.run, runs)


class HeldModel:
    """A model that takes and returns numpy arrays.

    One serves all calls, as in a user's program: what a runtime keeps from a call with another
    batch size is part of what it computes.
    """

    on_cpu = True

    def __init__(
        self, runtime: str, file: ModelFile, read: Callable[[], Hold], precision: str = ""
    ) -> None:
        """Read the file once.

        Args:
            runtime: The name of what runs it.
            file: The file.
            read: Makes what holds it; a bound model has one of its own.
            precision: What it computes in, read back; empty where that is the file's own.
        """
        self._runtime, self._file, self._read = runtime, file, read
        self._hold: Hold | None = read()
        self.precision = precision
        self.input_names = tuple(port.name for port in file.interface.inputs)
        self.output_names = tuple(port.name for port in file.interface.outputs)

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Array]:
        """Outputs by name.

        Raises:
            RunFailed: The runtime fails on these inputs, or they are not the model's.
        """
        try:
            self._hold = self._hold or self._read()
            found = self._held(self._hold, inputs)()
        except Stopped as error:
            # What a failed call leaves behind may change the numbers of the next one.
            self._hold = None
            raise RunFailed(self._runtime, self._file, error) from error
        return dict(zip(self.output_names, found, strict=True))

    def bind(self, inputs: Mapping[str, Any]) -> Held:
        """Put the inputs in place and run once.

        Raises:
            InputError: The model cannot run on these inputs.
        """
        arrays = by_name(self.input_names, inputs)
        try:
            bound = Held(self._held(self._read(), arrays))
            bound.run()
        except Stopped as error:
            raise does_not_run(inputs, str(error)) from error
        return bound

    def _held(self, hold: Hold, inputs: Mapping[str, Any]) -> Run:
        # Some check nothing themselves, and would read behind the end of a smaller array.
        wrong = misfit_of(self._file, inputs)
        if wrong:
            raise Stopped(wrong)
        return hold({name: np.asarray(inputs[name], order="C") for name in self.input_names})
