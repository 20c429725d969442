"""The launchers that users have: torchrun and accelerate."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "support" / "launched.py"
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


@pytest.mark.slow
def test_accelerate_prepares_a_sharded_student_with_its_optimizer(tmp_path: Path) -> None:
    """FSDP2 and DDP sum a gradient in another order; float64, five steps."""
    pytest.importorskip("accelerate")
    (tmp_path / "ddp").mkdir()
    (tmp_path / "fsdp").mkdir()
    plain = torchrun(tmp_path / "ddp")
    sharded = torchrun(tmp_path / "fsdp", "--fsdp")
    assert sharded[0] == sharded[1] and sharded[0]["kind"] == "Smooth"
    assert sharded[0]["ranks"] == plain[0]["ranks"] == 2
    found, wanted = (torch.load(tmp_path / kind / "0.pt") for kind in ("fsdp", "ddp"))
    for name, weight in wanted.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-9, atol=1e-12)
