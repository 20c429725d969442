"""One ONNX file in onnxruntime-web, fed with arrays, or bound to them."""

from __future__ import annotations

import re
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from opdf_compile.errors import ArtefactError, DeviceError
from opdf_compile.parity.model_file import ModelFile
from opdf_compile.parity.runtime.inputs import by_name, does_not_run
from opdf_compile.parity.runtime.protocol import RunFailed
from opdf_compile.parity.runtime.web.node_process import AnsweredError, NodeProcess

NAME = "onnxruntime-web"
_CODES = re.compile(
    r"(failed to call \w+\(\)|Can't create a session)\. ERROR_CODE: \d+, ERROR_MESSAGE: "
)
_READABLE = {
    *("float16", "float32", "float64", "bool"),
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
}


@dataclass(frozen=True)
class BoundWebModel:
    """A model whose inputs lie in the node process.

    Attributes:
        model: Whose session it is.
        number: What the process calls the inputs.
    """

    model: WebModel
    number: int

    def run(self) -> None:
        """Run once and wait for the outputs, which stay in the process."""
        self.seconds(1)

    def seconds(self, runs: int) -> float:
        """Seconds per run over a block of runs, by node's own clock around them.

        Raises:
            DeviceError: The process is gone, or the model stopped running.
        """
        try:
            found, _ = self.model.process.ask("time", bound=self.number, runs=runs)
        except AnsweredError as error:
            raise self.model.failed(error) from error
        return max(1.0, float(found["nanoseconds"])) / runs * 1e-9


class WebModel:
    """A session that takes and returns numpy arrays.

    Attributes:
        process: Where it lives.
    """

    on_cpu = True
    # No option changes it: operators compute in the types of the file.
    precision = ""

    def __init__(self, file: ModelFile, process: NodeProcess, *, optimised: bool) -> None:
        """Load a checked file.

        Raises:
            ArtefactError: The runtime refuses the graph.
            DeviceError: It has no kernel for an operator, or the process is gone.
        """
        self.process, self._file = process, file
        self.input_names = tuple(port.name for port in file.interface.inputs)
        self.output_names = tuple(port.name for port in file.interface.outputs)
        folder = file.path.resolve().parent
        beside = [{"name": n, "path": str(folder / n)} for n in file.external_files]
        path = str(file.path.resolve())
        try:
            found, _ = process.ask("load", file=path, external=beside, optimised=optimised)
        except AnsweredError as error:
            raise _not_loaded(file, said(error)) from error
        self._session = found["session"]
        weakref.finalize(self, process.drop, self._session).atexit = False

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
        """Outputs by name.

        Raises:
            RunFailed: The runtime fails on these inputs, or they are not the model's.
            DeviceError: The process is gone.
        """
        known = {name: inputs[name] for name in inputs if name in self.input_names}
        outputs = list(self.output_names)
        try:
            _, found = self.process.ask("run", known, session=self._session, outputs=outputs)
        except AnsweredError as error:
            raise self.failed(error) from error
        return found

    def bind(self, inputs: Mapping[str, Any]) -> BoundWebModel:
        """Leave the inputs in the process, and run once.

        Raises:
            InputError: The model cannot run on these inputs.
            DeviceError: The process is gone.
        """
        arrays = by_name(self.input_names, inputs)
        try:
            found, _ = self.process.ask("bind", arrays, session=self._session)
            self.process.ask("time", bound=found["bound"], runs=1)
        except AnsweredError as error:
            raise does_not_run(inputs, said(error)) from error
        return BoundWebModel(self, found["bound"])

    def failed(self, error: AnsweredError) -> RunFailed:
        """What to raise where a run did not work."""
        return RunFailed(NAME, self._file, error, reason=said(error))


def require_readable(file: ModelFile) -> None:
    """Refuse inputs and outputs that JavaScript has no arrays for.

    Raises:
        DeviceError: Names the first of them.
    """
    ports = (("input", file.interface.inputs), ("output", file.interface.outputs))
    for what, port in ((what, port) for what, found in ports for port in found):
        if port.dtype not in _READABLE:
            raise DeviceError(
                f"{NAME} cannot judge {file}, whose {what} {port.name!r} is {port.dtype} (it has "
                "no tensors of that type); export it in float32, or give another --runtime"
            )


def said(error: AnsweredError) -> str:
    """The runtime's reason on one line, without its codes."""
    return _CODES.sub("", " ".join(str(error).split()))[:200].rstrip(".")


def _not_loaded(file: ModelFile, reason: str) -> ArtefactError | DeviceError:
    if "find an implementation" in reason:
        return DeviceError(
            f"{NAME} has no kernel for an operator of {file} ({reason}); export it in float32, or "
            "give another --runtime"
        )
    return ArtefactError(f"{NAME} cannot load {file} ({reason}); export it again")
