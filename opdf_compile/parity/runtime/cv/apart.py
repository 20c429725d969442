"""A net in a process of its own, for an engine that may end the process it runs in.

The classic engine keeps buffers of the first shapes: after a larger batch it computes from memory
that is not its own, and at times the system ends the process.

    parent                        child
    the file's name       -->     reads it          -->  nothing, or why not
    arrays by name        -->     sets its inputs   -->  nothing, or why not
    nothing               -->     runs              -->  arrays in order, or why not

Each message is its length in 8 bytes and an npz file.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import weakref
from collections.abc import Mapping, Sequence
from typing import IO

import numpy as np

from opdf_compile.parity.runtime.cv import net as nets
from opdf_compile.parity.runtime.held_model import Array, Run, Stopped

_ERROR = "error"


class Apart:
    """A net in another process, which lives as long as this."""

    def __init__(self, path: str, engine: str, outputs: Sequence[str], threads: int) -> None:
        """Start the process and have it read the file.

        Raises:
            Stopped: The engine does not take it.
        """
        words = [sys.executable, "-m", __name__, path, engine, str(threads), *outputs]
        self._process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        weakref.finalize(self, _end, self._process)
        self._answer()

    def hold(self, arrays: Mapping[str, Array]) -> Run:
        """Set the inputs.

        Raises:
            Stopped: It does not take them, or ended its process.
        """
        self._ask(arrays)
        return self._run

    def _run(self) -> list[Array]:
        return list(self._ask({}).values())

    def _ask(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        assert self._process.stdin is not None
        # Where it has ended there is no answer, and the exit code says how.
        with contextlib.suppress(OSError):
            _send(self._process.stdin, arrays)
        return self._answer()

    def _answer(self) -> dict[str, Array]:
        assert self._process.stdout is not None
        found = _receive(self._process.stdout)
        if found is None:
            code = self._process.wait()
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            raise Stopped(f"the engine ends its process with {how}")
        if _ERROR in found:
            raise Stopped(str(found[_ERROR]))
        return found


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _send(stream: IO[bytes], arrays: Mapping[str, Array]) -> None:
    packed = io.BytesIO()
    np.savez(packed, **arrays)  # type: ignore[arg-type]
    stream.write(len(packed.getbuffer()).to_bytes(8, "big") + packed.getbuffer())
    stream.flush()


def _receive(stream: IO[bytes]) -> dict[str, Array] | None:
    """The next message; None where the other side has ended."""
    head = stream.read(8)
    body = stream.read(int.from_bytes(head, "big")) if len(head) == 8 else b""
    if not body:
        return None
    with np.load(io.BytesIO(body), allow_pickle=False) as found:
        return dict(found)


def main(words: Sequence[str]) -> None:
    """The child."""
    import cv2

    path, engine, threads, *outputs = words
    if int(threads):
        cv2.setNumThreads(int(threads))
    out, run = sys.stdout.buffer, None
    try:
        net = nets.read(path, engine)
    except Stopped as error:
        _send(out, {_ERROR: np.array(str(error))})
        return
    _send(out, {})
    while (asked := _receive(sys.stdin.buffer)) is not None:
        answer: dict[str, Array] = {}
        try:
            if asked:
                run = nets.hold(net, outputs, asked)
            elif run is not None:
                answer = {f"{place:06}": value for place, value in enumerate(run())}
        except Stopped as error:
            answer = {_ERROR: np.array(str(error))}
        _send(out, answer)


if __name__ == "__main__":
    main(sys.argv[1:])
