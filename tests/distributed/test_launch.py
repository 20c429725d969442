"""The launchers that users have: torchrun and accelerate."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("launched.py")
TIMEOUT = 240.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def launch(*command: str, out: Path) -> list[dict[str, object]]:
    """What each rank wrote."""
    loopback = {"GLOO_SOCKET_IFNAME": "lo"} if Path("/sys/class/net/lo").exists() else {}
    done = subprocess.run(
        [sys.executable, "-m", *command],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | loopback,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(2)]


def torchrun(out: Path, *options: str) -> list[dict[str, object]]:
    port = str(free_port())
    where = ("--nproc-per-node", "2", "--master-addr", "127.0.0.1", "--master-port", port)
    script = (str(SCRIPT), str(out), *options)
    return launch("torch.distributed.run", *where, *script, out=out)


@pytest.mark.slow
def test_torchrun_shared_out(tmp_path: Path) -> None:
    first, second = torchrun(tmp_path, "--share")
    assert first == second
    assert first["kind"] == "Smooth" and first["ranks"] == 2


@pytest.mark.slow
def test_torchrun_and_accelerate_give_the_same_student(tmp_path: Path) -> None:
    """Without --cpu: with it, accelerate starts one process, whatever --num_processes says."""
    pytest.importorskip("accelerate")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    plain = torchrun(tmp_path / "a")
    options = {
        "num_processes": "2",
        "num_machines": "1",
        "mixed_precision": "no",
        "dynamo_backend": "no",
        "main_process_port": str(free_port()),
    }
    where = ["--multi_gpu", *(text for k, v in options.items() for text in (f"--{k}", v))]
    script = (str(SCRIPT), str(tmp_path / "b"), "--accelerate")
    accelerated = launch("accelerate.commands.launch", *where, *script, out=tmp_path / "b")
    assert plain[0] == plain[1] == accelerated[0] == accelerated[1]
    assert plain[0]["ranks"] == 2
