"""Runs for the checkpoint tests, each in processes that are forked from this one.

Torch is imported once; forking then costs milliseconds, so that hundreds of runs can be killed. One
JSON line on stdin is one job, one JSON line on stdout its outcome. This process computes no
gradients, so that it has no threads, which a fork would lose.

    {"task": "forever", "ranks": 1, "folder": .., "kill_after": seconds, ..}
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

import opdf_compile as opdf
from opdf_compile.io.checkpoints import checkpoint

torch.set_num_threads(1)
READY, DONE, FAILED = b"r", 0, 1


class Slowing(torch.optim.SGD):
    """Divides its rate by a count beside the parameters' states; it may know where they started."""

    remembers = False

    def step(self, closure: Any = None) -> Any:
        state: Any = self.state
        held = [p for group in self.param_groups for p in group["params"]]
        if "count" not in state:
            state["count"] = torch.tensor(0)
            if self.remembers:
                state["start"] = {place: p.detach().clone() for place, p in enumerate(held)}
        state["count"] += 1
        with torch.no_grad():
            for place, p in enumerate(held):
                if p.grad is not None:
                    p.sub_(p.grad * 1e-2 / state["count"])
                if self.remembers:
                    p.lerp_(state["start"][place], 0.1)


class Remembering(Slowing):
    """What it keeps is for the very parameters that this rank holds."""

    remembers = True


def build(
    group: Any = None, *, shard: bool = False, make: Any = torch.optim.AdamW
) -> tuple[nn.Module, opdf.Overparam]:
    """Float64, so that sums over ranks are not what the tests look at."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 16),
        nn.LayerNorm(16),
        nn.Dropout(0.3),
        nn.Linear(16, 16),
        nn.ReLU(),
        nn.Linear(16, 16),
        nn.ReLU(),
        nn.Linear(16, 4),
    ).double()
    if shard:
        from torch.distributed.fsdp import fully_shard

        fully_shard(model)
    options: dict[str, Any] = {"lr": 1e-2, "weight_decay": 0.1, "cores": 2, "batched": False}
    return model, opdf.Overparam(model, make, process_group=group, **options)


def one_step(model: nn.Module, optimizer: opdf.Overparam) -> None:
    optimizer.zero_grad()
    model(torch.randn(5, 8, dtype=torch.float64)).square().sum().backward()
    optimizer.step()


def digest(model: nn.Module, optimizer: opdf.Overparam) -> str:
    """A hash of every tensor that a checkpoint must bring back."""
    found = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        found.update(name.encode() + tensor.numpy().tobytes())
    for name, state in optimizer.state_by_name().items():
        for key, value in state.items():
            found.update(f"{name} {key}".encode() + value.contiguous().numpy().tobytes())
    return found.hexdigest()


def forever(job: dict[str, Any], rank: int, ready: Callable[[], None]) -> None:
    """Take the run up at its newest checkpoint, and save every step until killed."""
    if job["in_place"]:
        checkpoint.atomic_folder = in_place  # type: ignore[assignment]
    model, optimizer = build()
    step = 0
    if checkpoint.latest_checkpoint(job["folder"]) is not None:
        step = checkpoint.load_checkpoint(job["folder"], optimizer).step
    while True:
        step += 1
        one_step(model, optimizer)
        ready()  # The first step takes longest; the clock starts after it.
        extra = {"digest": digest(model, optimizer)}
        checkpoint.save_checkpoint(job["folder"], optimizer, step=step, extra=extra, keep=2)


@contextlib.contextmanager
def in_place(path: Path, **_: Any) -> Iterator[Path]:
    """What `files.atomic_folder` must not be: it writes under the final name."""
    path.mkdir()
    yield path


def steps(job: dict[str, Any], rank: int, ready: Callable[[], None]) -> None:
    """Load the newest checkpoint if there is one, do some steps, save."""
    group = dist.group.WORLD if job["share_out"] else None
    model, optimizer = build(group, shard=job["shard"])
    step = 0
    if checkpoint.latest_checkpoint(job["folder"]) is not None:
        step = checkpoint.load_checkpoint(job["folder"], optimizer).step
    for _ in range(job["steps"]):
        step += 1
        # The same numbers on every rank and every number of ranks.
        torch.manual_seed(step)
        one_step(model, optimizer)
    checkpoint.save_checkpoint(job["folder"], optimizer, step=step)


def draws(job: dict[str, Any], rank: int, ready: Callable[[], None]) -> None:
    """Each rank has random numbers of its own, and gets its own back."""
    _, optimizer = build()
    torch.manual_seed(100 + rank)
    checkpoint.save_checkpoint(job["folder"], optimizer, step=1)
    drawn = torch.randn(3)
    torch.manual_seed(0)
    checkpoint.load_checkpoint(job["folder"], optimizer)
    assert torch.equal(torch.randn(3), drawn)


def of_the_class(job: dict[str, Any], rank: int, ready: Callable[[], None]) -> None:
    """What a wrapped optimizer keeps of its own comes back to the rank that had it."""
    for name, make in (("counts", Slowing), ("starts", Remembering)):
        folder = Path(job["folder"], name)
        model, optimizer = build(dist.group.WORLD, make=make)
        one_step(model, optimizer)
        checkpoint.save_checkpoint(folder, optimizer, step=1)
        again, resumed = build(dist.group.WORLD, make=make)
        checkpoint.load_checkpoint(folder, resumed)
        for made in ((model, optimizer), (again, resumed)):
            torch.manual_seed(7)
            one_step(*made)
        assert digest(model, optimizer) == digest(again, resumed), name
        assert int(resumed.inner.state["count"]) == 2  # type: ignore[index]


def disagree(job: dict[str, Any], rank: int, ready: Callable[[], None]) -> None:
    """Every mistake of one rank ends all of them, with its sentence."""
    _, optimizer = build()
    folder = Path(job["folder"])
    expect("save the steps \\[0, 1\\]", lambda: save(folder, optimizer, step=rank))
    bad = {"step": 1, "extra": object() if rank == 1 else None}
    words = "extra is a object" if rank == 1 else "rank 1 of 2 stopped: extra is a object"
    expect(words, lambda: save(folder, optimizer, **bad))
    save(folder, optimizer, step=1)
    expect("exists already", lambda: save(folder, optimizer, step=1))
    wrong = build()[1] if rank == 0 else opdf.Overparam(nn.Linear(8, 12), lr=1.0)
    before = digest(wrong.program.module, wrong)
    expect("does not fit", lambda: checkpoint.load_checkpoint(folder, wrong))
    assert digest(wrong.program.module, wrong) == before


def changed(job: dict[str, Any], rank: int, ready: Callable[[], None]) -> None:
    """A sharded weight that somebody changed is still told after loading, and only then."""
    model, optimizer = build(shard=True)
    one_step(model, optimizer)
    weight = model[0].weight
    checkpoint.save_checkpoint(job["folder"], optimizer, step=1)
    with torch.no_grad():
        weight.add_(1.0)
    checkpoint.save_checkpoint(job["folder"], optimizer, step=2)
    again, resumed = build(shard=True)
    checkpoint.load_checkpoint(job["folder"], resumed)
    assert torch.equal(again[0].weight.full_tensor(), weight.full_tensor())
    expect("changed since the last refresh", lambda: one_step(again, resumed))
    checkpoint.load_checkpoint(Path(job["folder"], "step-000001"), resumed)
    one_step(again, resumed)


def save(folder: Path, optimizer: opdf.Overparam, **options: Any) -> None:
    checkpoint.save_checkpoint(folder, optimizer, **options)


def expect(words: str, action: Callable[[], Any]) -> None:
    import re

    try:
        action()
    except opdf.UserError as error:
        assert re.search(words, str(error)), str(error)
    else:
        raise AssertionError(f"no error, wanted {words!r}")


TASKS = {
    "forever": forever,
    "steps": steps,
    "draws": draws,
    "of_the_class": of_the_class,
    "disagree": disagree,
    "changed": changed,
}


def child(job: dict[str, Any], rank: int, pipe: int) -> None:
    """One rank; leaves the process without running what belongs to its parent."""
    code = FAILED
    try:
        if job["ranks"] > 1:
            rendezvous = f"file://{job['rendezvous']}"
            dist.init_process_group("gloo", rendezvous, rank=rank, world_size=job["ranks"])
        TASKS[job["task"]](job, rank, lambda: void(os.write(pipe, READY)))
        code = DONE
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def void(_: object) -> None:
    return None


def serve(job: dict[str, Any]) -> list[int]:
    """Fork the ranks of a job; how each ended (negative: the signal that ended it)."""
    reading, writing = os.pipe()
    children = []
    for rank in range(job["ranks"]):
        pid = os.fork()
        if pid == 0:
            child(job, rank, writing)
        children.append(pid)
    os.close(writing)
    if job["kill_after"] is not None and os.read(reading, 1) == READY:
        time.sleep(job["kill_after"])
        os.kill(children[0], signal.SIGKILL)
    os.close(reading)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]


class Server:
    """The process that forks the runs, from the side of a test."""

    def __init__(self) -> None:
        command = [sys.executable, __file__]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)

    def run(self, **job: Any) -> list[int]:
        """Run one job; how its ranks ended."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"ranks": 1, **job}) + "\n")
        self._process.stdin.flush()
        ended: list[int] = json.loads(self._process.stdout.readline())
        return ended

    def close(self) -> None:
        self._process.communicate()


def main() -> None:
    # What is imported at first use is so imported once, and not in every child.
    build()
    for line in sys.stdin:
        sys.stdout.write(json.dumps(serve(json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
