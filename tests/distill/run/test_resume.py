"""A run that is interrupted anywhere ends with the bits of one that is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from opdf_compile.distill.run import Stepped, cache, run
from opdf_compile.errors import RunInterrupted
from opdf_compile.io.checkpoints import checkpoint

Outcome = Callable[[Path], dict[str, Any]]
KINDS = {
    "overparam": {"plan": "cores = 2"},
    "branches": {
        "student": "blocks",
        "plan": 'parametrization = "repvgg(start=published)"',
        "training": "epochs = 3\\ncheckpoint_every = 3",
    },
    "plain": {"optimizer": "SGD", "options": "momentum = 0.9"},
    "early": {"training": "epochs = 5\\nearly_stopping = 1\\naccumulation = 2\\nclip = 0.5"},
}


class Killed(BaseException):
    """Ends a run where it is raised; nothing of ours catches it."""


def dies_at(step: int) -> Callable[[Any], None]:
    def watch(event: Any) -> None:
        if isinstance(event, Stepped) and event.step == step:
            raise Killed

    return watch


@pytest.mark.parametrize(
    "kind",
    [
        "overparam",
        *(pytest.param(k, marks=pytest.mark.slow) for k in ("branches", "plain", "early")),
    ],
)
def test_three_interruptions_leave_the_bits_alone(
    kind: str, make: Any, tmp_path: Path, outcome: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(make(**KINDS[kind]), tmp_path / "whole")
    for step in (2, 5, 7):
        with pytest.raises(Killed):
            run(make(**KINDS[kind]), tmp_path / "parts", watch=dies_at(step))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(checkpoint, "write_manifest", _killed)
        run(make(**KINDS[kind]), tmp_path / "parts")
    run(make(**KINDS[kind]), tmp_path / "parts")
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")


def _killed(*_args: object) -> None:
    raise Killed


@pytest.mark.slow
def test_the_comparison_sees_another_run(make: Any, tmp_path: Path, outcome: Outcome) -> None:
    run(make(), tmp_path / "a")
    run(make(training="epochs = 3\\ncheckpoint_every = 3\\nema = 0.9\\nseed = 1"), tmp_path / "b")
    first, second = outcome(tmp_path / "a"), outcome(tmp_path / "b")
    assert all(first[name] != second[name] for name in first)


def test_the_cache_goes_on_at_the_first_missing_file(
    make: Any, tmp_path: Path, outcome: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "FILE_BYTES", 256)
    run(make(cache="true"), tmp_path / "whole")
    written: list[str] = []
    write = cache.write_tensors

    def counted(path: Path, tensors: Any) -> None:
        if len(written) == 2:
            raise Killed
        written.append(path.name)
        write(path, tensors)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(cache, "write_tensors", counted)
        run(make(cache="true"), tmp_path / "parts")
    run(make(cache="true"), tmp_path / "parts")
    assert written == ["train-00000.safetensors", "train-00001.safetensors"]
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_signal_saves_and_says_how_to_go_on_and_a_finished_run_is_not_done_again(
    number: signal.Signals, make: Any, tmp_path: Path, outcome: Outcome
) -> None:
    def watch(event: Any) -> None:
        if isinstance(event, Stepped) and event.step == 4:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with pytest.raises(RunInterrupted, match="give the same command again") as caught:
        run(make(), tmp_path / "parts", watch=watch)
    assert caught.value.exit_code == 130
    assert signal.getsignal(number) is before
    assert (tmp_path / "parts" / "checkpoints" / "step-000005").is_dir()
    run(make(), tmp_path / "parts")
    first = run(make(), tmp_path / "whole")
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")

    log = (tmp_path / "whole" / "log.jsonl").stat()
    assert run(make(), tmp_path / "whole") == first
    assert (tmp_path / "whole" / "log.jsonl").stat().st_mtime_ns == log.st_mtime_ns


@pytest.mark.slow
def test_killed_in_every_place(write: Any, tmp_path: Path, outcome: Outcome) -> None:
    recipe = write(plan="cores = 2", cache="true", export="true", verify="true")
    worker = Path(__file__).parents[2] / "support" / "run_worker.py"

    def start(folder: str, *place: str) -> int:
        command = [sys.executable, str(worker), str(recipe), str(tmp_path / folder), *place]
        return subprocess.run(command, check=False, timeout=300).returncode

    assert start("whole") == 0
    for place in ("cache", "step-4", "save", "step-11", "export", "verify"):
        assert start("parts", place) == -signal.SIGKILL, place
    assert start("parts") == 0
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")
