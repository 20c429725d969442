"""A node process that answers requests over its pipes, and never leaves the caller waiting.

    message   4 bytes, little-endian: the length of the head
              the head in JSON: in questions `ask`, what it needs, and `release`, the sessions that
              nobody holds any more; in answers what was found, or `error`; in both `arrays`, a list
              of {name, type, dims, bytes}
              the bytes of those arrays, one after the other, in C order

Every answer has a time limit, after which the process is killed. It ends with this one, because
its input ends.
"""

from __future__ import annotations

import json
import re
import struct
import subprocess
import tempfile
import threading
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from typing import IO, Any

import numpy as np

from opdf_compile.errors import DeviceError

# What one answer may take: reading a model of gigabytes, or a run of one.
SECONDS = 600.0
_COLOURS = re.compile(r"\x1b\[[\d;]*m")
# node ends its report of an error with its own version and the stack.
_SAYS_NOTHING = re.compile(r"\s*(at |Node\.js v|$)")

Arrays = Mapping[str, Any]


class AnsweredError(Exception):
    """The process is alive and says why it could not do what it was asked."""


class NodeProcess:
    """One process; one question at a time."""

    def __init__(self, command: Sequence[str]) -> None:
        """Start it.

        Raises:
            OSError: The program cannot be started.
        """
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - open for as long as the process.
        self._process = subprocess.Popen(
            list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said
        )
        self._asking, self._unheld = threading.Lock(), deque[int]()
        self._gone = ""
        self._end = weakref.finalize(self, _end, self._process, self._said)

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._end.alive and self._process.poll() is None

    def drop(self, session: int) -> None:
        """Have a session freed before the next question.

        Python may call this in the midst of one, when it collects what nobody holds.
        """
        self._unheld.append(session)

    def ask(
        self, question: str, arrays: Arrays | None = None, **head: Any
    ) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
        """The answer's head, and its arrays by name.

        Raises:
            AnsweredError: It says that it cannot do that.
            DeviceError: It is gone, broke the protocol, or did not answer in time.
        """
        if self._gone:
            raise DeviceError(self._gone)
        parts = {name: np.asarray(array, order="C") for name, array in (arrays or {}).items()}
        told = [
            {"name": n, "type": a.dtype.name, "dims": a.shape, "bytes": a.nbytes}
            for n, a in parts.items()
        ]
        unheld = [self._unheld.popleft() for _ in range(len(self._unheld))]
        text = json.dumps({"ask": question, **head, "release": unheld, "arrays": told}).encode()
        late = threading.Event()
        watch = threading.Timer(SECONDS, _kill_late, (self._process, late))
        watch.daemon = True
        with self._asking:
            watch.start()
            try:
                self._write(struct.pack("<I", len(text)), text, *parts.values())
                found, values = self._answer()
            except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
                raise self._lost(error, late.is_set()) from error
            finally:
                watch.cancel()
        if "error" in found:
            raise AnsweredError(found["error"])
        return found, values

    def _write(self, *parts: Any) -> None:
        pipe = _open(self._process.stdin)
        for part in parts:
            pipe.write(part)
        pipe.flush()

    def _answer(self) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
        head = json.loads(self._read(*struct.unpack("<I", self._read(4))))
        values = {}
        for one in head.pop("arrays"):
            # An own copy, which the caller may write into.
            flat = np.frombuffer(bytearray(self._read(one["bytes"])), one["type"])
            values[one["name"]] = flat.reshape(one["dims"])
        return head, values

    def _read(self, size: int) -> bytes:
        found = _open(self._process.stdout).read(size)
        if len(found) < size:
            raise EOFError
        return found

    def _lost(self, error: Exception, late: bool) -> DeviceError:
        """The process cannot be trusted any more; say why."""
        if late:
            reason = f"did not answer within {SECONDS:g} s"
        elif isinstance(error, (OSError, EOFError)):
            reason = "ended"
        else:
            reason = "answered what is no answer"
        code = _exit_status(self._process)
        said = _last_words(self._said)
        self._gone = (
            f"the node process {reason} (exit status {code}{f', {said}' if said else ''}); run the "
            "command again, or give another --runtime"
        )
        self._end()
        return DeviceError(self._gone)


def _open(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None or pipe.closed:
        raise EOFError
    return pipe


def _kill_late(process: subprocess.Popen[bytes], late: threading.Event) -> None:
    late.set()
    process.kill()


def _exit_status(process: subprocess.Popen[bytes]) -> int:
    """Its pipes close a moment before it has its own status; one that stays is killed."""
    try:
        return process.wait(timeout=1)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _last_words(said: IO[bytes]) -> str:
    """The line of its error output that says most: the last with an error, else the last."""
    said.seek(0)
    text = _COLOURS.sub("", said.read().decode(errors="replace"))
    lines = [line.strip() for line in text.splitlines() if not _SAYS_NOTHING.match(line)]
    errors = [line for line in lines if "Error" in line]
    return (errors or lines or [""])[-1][:200].rstrip(".")


def _end(process: subprocess.Popen[bytes], said: IO[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            # What is left in a buffer has no reader any more.
            try:
                pipe.close()
            except BrokenPipeError:
                continue
    said.close()
