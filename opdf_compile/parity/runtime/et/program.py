"""A `.pte` file in ExecuTorch: loaded, fed, run."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from typing import Any

import numpy as np

from opdf_compile.artefacts import ONNX_HASH, pte_path
from opdf_compile.errors import ArtefactError, DeviceError, first_line
from opdf_compile.parity.model_file import ModelFile
from opdf_compile.parity.runtime.held_model import Array, Run, Stopped
from opdf_compile.parity.runtime.native_log import native_log

NAME = "executorch"
_METHOD = "forward"
_REMEDY = "export again with --executorch"
# Each line of its log has a place in front; those on the processor's make are no reasons.
_LINE = re.compile(r"\[(?!cpuinfo)[\w.]+:\d+\] (.+)")


class Pool:
    """The threads that all programs of a process share.

    A program points into the pool that it was loaded with, so after a change it is loaded again.

    Attributes:
        changes: How often the number was changed.
    """

    changes = 0
    _usual = 0

    @classmethod
    def set(cls, threads: int) -> None:
        """Let an operator use so many threads; 0 for as many as ExecuTorch takes by itself."""
        from executorch.extension.pybindings import portable_lib

        now = portable_lib._threadpool_get_thread_count()
        cls._usual = cls._usual or now
        if now != (threads or cls._usual):
            portable_lib._unsafe_reset_threadpool(threads or cls._usual)
            cls.changes += 1


class Program:
    """The program beside an ONNX file; takes and returns numpy arrays."""

    def __init__(self, file: ModelFile, threads: int) -> None:
        """Load it.

        Raises:
            ArtefactError: It is missing, or was made with another file.
            DeviceError: ExecuTorch cannot load it.
        """
        self._file, self._path, self._threads = file, pte_path(file.path), threads
        if not self._path.is_file():
            raise ArtefactError(
                f"{NAME} runs {self._path}, which does not exist, wanted the program that was "
                f"lowered with {file.name}; {_REMEDY}"
            )
        self._load()

    def hold(self, arrays: Mapping[str, Array]) -> Run:
        """Set the inputs, which stand in the order of the ONNX file's."""
        import torch

        # torch warns of memory that may not be written to, and takes it all the same.
        tensors = [
            torch.from_numpy(np.require(array, None, ["C", "W"])) for array in arrays.values()
        ]
        return _Held(self, tensors)

    def execute(self, tensors: list[Any]) -> list[Array]:
        """Run on torch tensors; the outputs are new arrays."""
        if self._loaded_at != Pool.changes:
            self._load()
        return [tensor.numpy() for tensor in self._method.execute(tensors)]

    def _load(self) -> None:
        from executorch.runtime import Runtime

        with _log() as log:
            try:
                Pool.set(self._threads)
                self._loaded_at = Pool.changes
                program = Runtime.get().load_program(str(self._path))
                self._require_own(program)
                self._method = program.load_method(_METHOD)
            except RuntimeError as error:
                raise DeviceError(
                    f"{NAME} cannot load {self._path} ({_reason(log(), error)}); {_REMEDY}, or "
                    "give another --runtime"
                ) from error

    def _require_own(self, program: Any) -> None:
        names = program.method_names
        if not {_METHOD, ONNX_HASH} <= names:
            raise ArtefactError(
                f"{self._path} does not say which ONNX file it was lowered with, wanted the "
                f"program of {self._file.name}; {_REMEDY}"
            )
        (made_with,) = program.load_method(ONNX_HASH).execute([])
        if made_with != self._file.sha256:
            raise ArtefactError(
                f"{self._path} was lowered with another file than {self._file} as it is now, "
                f"wanted the program of its own export; {_REMEDY}"
            )


class _Held:
    """A program with its inputs in place."""

    def __init__(self, program: Program, tensors: list[Any]) -> None:
        self._program, self._tensors, self._runs = program, tensors, False

    def __call__(self) -> list[Array]:
        if self._runs:
            return self._program.execute(self._tensors)
        # Its log alone tells a reason, and to take that over takes time that is no part of a run.
        with _log() as log:
            try:
                found = self._program.execute(self._tensors)
            except RuntimeError as error:
                raise Stopped(_reason(log(), error)) from error
        self._runs = True
        return found


@contextmanager
def quietly() -> Iterator[None]:
    """Keep from the terminal what its packages say while they are imported."""
    with warnings.catch_warnings(), native_log():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _log() -> Iterator[Callable[[], str]]:
    """Take over its log, which goes through Python or past it; the function gives what it says."""
    with native_log() as native, redirect_stderr(StringIO()) as told:
        yield lambda: told.getvalue() + native()


def _reason(log: str, error: Exception) -> str:
    """The first line of its log, where what went wrong is said; else the error's number."""
    said = _LINE.search(log)
    return (said[1] if said else first_line(error))[:200].rstrip(".")
