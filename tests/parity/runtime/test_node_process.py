"""A pretended node that dies, hangs or talks nonsense: one sentence, no waiting, no orphan."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opdf_compile.errors import DeviceError
from opdf_compile.parity.runtime.web import node_process
from opdf_compile.parity.runtime.web.node_process import AnsweredError, NodeProcess

# It answers with the arrays that it was given, unless the question says otherwise.
PRETENDED = """
import json, os, struct, sys, time
read, write = sys.stdin.buffer.read, sys.stdout.buffer.write
while length := read(4):
    head = json.loads(read(*struct.unpack("<I", length)))
    payload = b"".join(read(one["bytes"]) for one in head["arrays"])
    if head["ask"] == "die":
        sys.stderr.write(head["words"])
        sys.stderr.flush()
        os._exit(7)
    if head["ask"] == "hang":
        time.sleep(600)
    if head["ask"] == "babble":
        write(bytes.fromhex(head["bytes"]))
        sys.stdout.flush()
        continue
    found = {"arrays": head["arrays"], "heard": head["ask"]}
    if head["ask"] == "refuse":
        found["error"] = "no such model"
    text = json.dumps(found).encode()
    write(struct.pack("<I", len(text)) + text + payload)
    sys.stdout.flush()
"""


@pytest.fixture
def start(tmp_path: Path) -> Callable[[], NodeProcess]:
    script = tmp_path / "node.py"
    script.write_text(PRETENDED)
    return lambda: NodeProcess([sys.executable, str(script)])


def gone(pid: int) -> bool:
    """Whether no such process is left, and none that waits to be collected."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_arrays_go_there_and_come_back(start: Callable[[], NodeProcess]) -> None:
    process = start()
    sent: dict[str, Any] = {
        "x": np.arange(6.0).reshape(2, 3),
        "mask": np.array(True),
        "none": np.zeros((0, 4), np.float16),
        "turned": np.arange(6, dtype=np.int64).reshape(2, 3).T,
        "large": np.random.default_rng(0).random(300_000),
    }
    head, found = process.ask("echo", sent)
    assert head == {"heard": "echo"} and list(found) == list(sent)
    for name, array in sent.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        np.testing.assert_array_equal(found[name], array)
    found["x"][...] = 0


def test_a_refusal_leaves_it_alive(start: Callable[[], NodeProcess]) -> None:
    process = start()
    with pytest.raises(AnsweredError, match="no such model"):
        process.ask("refuse")
    assert process.alive and process.ask("again")[0] == {"heard": "again"}


STACK = """
    \x1b[31mTypeError: x is null\x1b[0m
        at serve (serve.cjs:1:1)

    Node.js v20.20.2
"""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("out of memory\n", r"\(exit status 7, out of memory\)"),
        (textwrap.dedent(STACK), r"\(exit status 7, TypeError: x is null\)"),
        ("", r"\(exit status 7\)"),
    ],
)
def test_a_death_is_told_by_its_last_words(
    words: str, said: str, start: Callable[[], NodeProcess]
) -> None:
    process = start()
    with pytest.raises(DeviceError, match=f"the node process ended {said}; run the") as caught:
        process.ask("die", words=words)
    assert "\n" not in str(caught.value) and not process.alive
    # Whoever asks it again is told the same.
    with pytest.raises(DeviceError, match=f"the node process ended {said}; run the"):
        process.ask("echo")


def test_one_that_hangs_is_killed(
    start: Callable[[], NodeProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    process = start()
    process.ask("echo")
    monkeypatch.setattr(node_process, "SECONDS", 0.5)
    with pytest.raises(DeviceError, match=r"did not answer within 0.5 s \(exit status -?\d+\)"):
        process.ask("hang")
    assert not process.alive


def test_one_that_reads_nothing_is_killed(
    start: Callable[[], NodeProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than a pipe holds, so that it is the writing which would wait for ever."""
    process = NodeProcess([sys.executable, "-c", "import time; time.sleep(600)"])
    monkeypatch.setattr(node_process, "SECONDS", 0.5)
    with pytest.raises(DeviceError, match=r"did not answer within 0.5 s"):
        process.ask("echo", {"x": np.zeros(1_000_000)})


@pytest.mark.parametrize(
    "answer",
    [
        b"\x02\0\0\0[]",
        b"\x02\0\0\0{}",
        b"\x03\0\0\0not",
        b'\x40\0\0\0{"arrays": [{"name": "x", "type": "no", "dims": [], "bytes": 0}]}',
    ],
    ids=["a list", "no arrays", "no JSON", "no type"],
)
def test_nonsense_is_one_sentence(answer: bytes, start: Callable[[], NodeProcess]) -> None:
    process = start()
    padded = answer[:4] + answer[4:].ljust(answer[0])
    with pytest.raises(DeviceError, match="answered what is no answer"):
        process.ask("babble", bytes=padded.hex())
    assert not process.alive


@pytest.mark.skipif(os.name == "nt", reason="asks the system for a process by a signal")
def test_none_is_left_behind(start: Callable[[], NodeProcess]) -> None:
    process = start()
    process.ask("echo")
    first = process._process.pid
    del process
    gc.collect()
    assert gone(first)


@pytest.mark.skipif(os.name == "nt", reason="asks the system for a process by a signal")
def test_it_ends_with_a_python_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "node.py"
    script.write_text(PRETENDED)
    code = (
        "import os, sys; from opdf_compile.parity.runtime.web.node_process import NodeProcess\n"
        f"process = NodeProcess([sys.executable, {str(script)!r}]); process.ask('echo')\n"
        "print(process._process.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    pid = int(done.stdout)
    until = time.monotonic() + 60
    while not gone(pid) and time.monotonic() < until:
        time.sleep(0.1)
    assert gone(pid)
