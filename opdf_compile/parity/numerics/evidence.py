"""One file with its check data: whether they belong together, and what the file computes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from opdf_compile.artefacts import CheckData, Port, read_check
from opdf_compile.errors import ArtefactError
from opdf_compile.parity.model_file import ModelFile, PathLike
from opdf_compile.parity.numerics.converted import as_converted, is_converted
from opdf_compile.parity.numerics.free_axes import stop_of
from opdf_compile.parity.numerics.mismatch import Array
from opdf_compile.parity.runtime.protocol import Device, RunFailed


@dataclass(frozen=True)
class Evidence:
    """A model and the check data that is to judge it.

    Attributes:
        model: The ONNX file.
        check: Its check file.
        data: What that holds, in the dtypes of a file that was converted since.
        converted: Whether it was.
    """

    model: ModelFile
    check: Path
    data: CheckData
    converted: bool = False

    @cached_property
    def rewritten(self) -> bool:
        """Whether the file is another one than the check data was written for."""
        return self.data.onnx_sha256 != self.model.sha256

    def run(self, device: Device, *, optimised: bool = True) -> list[dict[str, Array]]:
        """The outputs of every sample by name, of the graph as the runtime rewrites it or as it is.

        Raises:
            ArtefactError: The check data belongs to another interface.
            DeviceError: The runtime cannot run the model on the device.
            StopsAtSize: The file does not run at a size that it declares free.
        """
        runner = device.runtime.load(self.model, device, optimised=optimised)
        # An output that the check data does not know would pass unseen, so both sides must agree.
        self._require_names("inputs", self.data.input_names, runner.input_names)
        self._require_names("outputs", self.data.output_names, runner.output_names)
        found, stopped = [], {}
        for index, sample in enumerate(self.data.samples):
            try:
                found.append(runner(sample.inputs))
            except RunFailed as error:
                stopped[index] = error
        if not stopped:
            return found
        self.require_fit()
        ports = self.model.interface.inputs
        raise stop_of(runner, ports, self.data.samples, stopped) or next(iter(stopped.values()))

    def require_fit(self) -> None:
        """Refuse check data that was not written for a file of this interface.

        Raises:
            ArtefactError: A name, shape or dtype differs.
        """
        face = self.model.interface
        self._require_names("inputs", self.data.input_names, [port.name for port in face.inputs])
        self._require_names("outputs", self.data.output_names, [port.name for port in face.outputs])
        for what, port, array, dtype in self._arrays(face.inputs, face.outputs):
            wrong = port.misfit(np.shape(array))
            if not wrong and dtype and dtype != port.dtype:
                wrong = f"the dtype {dtype}"
            if wrong:
                raise self._misfit(f"its {what} {port.name!r} has {wrong}, the file's is {port}")

    def _arrays(
        self, inputs: Sequence[Port], outputs: Sequence[Port]
    ) -> Iterator[tuple[str, Port, Any, str]]:
        for sample in self.data.samples:
            for port in inputs:
                array = sample.inputs[port.name]
                yield "input", port, array, array.dtype.name
            for port in outputs:
                dtype = self.data.output_dtypes.get(port.name, "")
                yield "output", port, sample.outputs[port.name], dtype

    def _require_names(self, what: str, theirs: Sequence[str], ours: Sequence[str]) -> None:
        if set(theirs) != set(ours):
            # A pair is matched by names: a guess by position could match two equal shapes wrongly.
            renamed = f" (if a tool renamed them, have it keep the names of its {what})"
            raise self._misfit(
                f"it was written for the {what} {', '.join(theirs) or 'none'}, the file has "
                f"{', '.join(ours) or 'none'}{renamed if len(theirs) == len(ours) else ''}"
            )

    def _misfit(self, found: str) -> ArtefactError:
        return ArtefactError(
            f"{self.check} does not fit {self.model}: {found}; give the check data that was "
            "exported with this model, or write some with opdf-compile check-data"
        )


def read_evidence(model: PathLike, check: Path) -> Evidence:
    """Read a file's check data.

    Raises:
        ArtefactError: It cannot be read, names no file, or does not fit the file.
    """
    evidence = Evidence(ModelFile.of(model), check, read_check(check))
    if not evidence.data.onnx_sha256:
        # Evidence that names no file would pass for the evidence of any.
        raise ArtefactError(
            f"{check} does not say which ONNX file it was written for, wanted its SHA-256; export "
            "the model again"
        )
    if not evidence.rewritten:
        return evidence
    face = evidence.model.interface
    if is_converted(evidence.data, face):
        evidence = replace(evidence, data=as_converted(evidence.data, face), converted=True)
    evidence.require_fit()
    return evidence
