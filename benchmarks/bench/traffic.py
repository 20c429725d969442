"""What one rank of a data-parallel step sends and holds; runs inside the processes of ddp.py.

Gradients are counted by DDP's own communication hook, everything else (the broadcasts of a program
that is shared out) by the calls that reach torch.distributed during the optimizer's step.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bench import students
from bench.forms import OPTIONS, Form, build, planned
from bench.owners import owned

# Traffic and memory of the cores do not depend on the batch, and activations need room.
_BATCH = 2
_TIMEOUT = timedelta(minutes=10)


class CountCollectives(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes that the block gives to collectives, by the collective's name."""

    def __init__(self) -> None:
        """Begin at zero."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Count, and go on as without this mode."""
        if func.namespace == "c10d":
            name = func._schema.name.partition("::")[2].rstrip("_")
            tensors = [leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, Tensor)]
            self.bytes[name] += sum(tensor.nbytes for tensor in tensors)
        return func(*args, **(kwargs or {}))


def run_rank(
    rank: int, size: int, folder: str, model: str, cores: int | None, name: str, seed: int
) -> None:
    """One rank of one form: two steps, the second is counted; the figures go to a file.

    Args:
        rank: This process.
        size: Processes.
        folder: Where they meet, and where `RANK.json` is written.
        model: The student.
        cores: Cores per weight; None is the student's usual number.
        name: A form, or "shared out".
        seed: Of the student.
    """
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"file://{folder}/meet", rank=rank, world_size=size, timeout=_TIMEOUT
    )
    try:
        figures = _measure(_small(students.student(model, torch.device("cpu"), seed)), cores, name)
        (Path(folder) / f"{rank}.json").write_text(json.dumps(figures), encoding="utf-8")
    finally:
        dist.destroy_process_group()


def _measure(student: students.Student, cores: int | None, name: str) -> dict[str, Any]:
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    traced, plan = planned(student, cores)
    shared = {"process_group": dist.group.WORLD} if name == "shared out" else {}
    form = build("hoisted" if shared else name, student, traced, plan, OPTIONS, **shared)
    reduced: Counter[str] = Counter()
    wrapped = DistributedDataParallel(form.model)
    # DDP insists on its own types in a hook's annotations; a lambda has none.
    wrapped.register_comm_hook(reduced, lambda count, bucket: count_and_reduce(count, bucket))
    replica = Form(form.name, student, wrapped, form.optimizer)
    replica.step(1)
    reduced.clear()
    with CountCollectives() as counted:
        replica.micro_batches(1)
        # The mode sees the hook's all-reduce as well, which has been counted by the hook.
        counted.bytes.clear()
        form.optimizer.step()
    form.optimizer.zero_grad()
    return {
        "gradient_bytes": reduced["gradients"],
        "broadcast_bytes": counted.bytes["broadcast"],
        "other_bytes": sum(counted.bytes.values()) - counted.bytes["broadcast"],
        # Without gradients, which come and go and are as large as the values.
        "core_and_state_bytes": sum(tensor.untyped_storage().nbytes() for tensor in owned(form)),
        "cores": max(len(entry.core_names) for entry in plan.entries),
        "scale": plan.scale,
    }


def count_and_reduce(count: Counter[str], bucket: Any) -> Any:
    """DDP's usual all-reduce of a bucket of gradients, counted."""
    import torch.distributed as dist
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    count["gradients"] += bucket.buffer().nbytes
    everyone = dist.group.WORLD
    assert everyone is not None  # The process joined it before any step.
    return allreduce_hook(everyone, bucket)


def _small(student: students.Student) -> students.Student:
    return replace(
        student,
        args=tuple(value[:_BATCH] for value in student.args),
        kwargs={key: value[:_BATCH] for key, value in student.kwargs.items()},
        target=student.target[:_BATCH],
    )
