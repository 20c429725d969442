"""Tasks: one weight program shared out over the ranks of a group, under DDP."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from ddp_tasks import OPTIONS, cores, train
from students import OUT, Smooth, batches, build, loss_of, share, weights
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.optim import SGD, AdamW
from traffic import Traffic, bucket_hook

import opdf_compile as opdf

Made = tuple[DDP, opdf.Overparam]


def make(
    group: Any, *, student: nn.Module | None = None, kind: Any = AdamW, **options: Any
) -> Made:
    """A student in DDP, and the Overparam over it."""
    wrapped = DDP(build() if student is None else student)
    given = {**OPTIONS, "cores": 3, **options}
    return wrapped, opdf.Overparam(wrapped, kind, process_group=group, **given)


def everywhere(mine: Any) -> list[Any]:
    """What each rank has, on all ranks."""
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    return found


def refused(action: Callable[[], Any]) -> str:
    """The error that an action ends with, or "no error"."""
    try:
        action()
    except opdf.errors.UserError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def held(optimizer: opdf.Overparam) -> int:
    """Bytes of the cores that this rank stores, and of what the wrapped optimizer keeps of them."""
    stored = [core for unit in optimizer.program.units for core in unit.storage]
    kept = [
        value
        for core in stored
        for value in optimizer.inner.state[core].values()
        if isinstance(value, Tensor) and value.shape == core.shape
    ]
    return sum(tensor.nbytes for tensor in (*stored, *kept))


def against_replicated() -> dict[str, Any]:
    """The same run shared out and not, and the plain student's traffic."""
    ends: dict[str, Any] = {}
    plain = DDP(build())
    sizes: list[int] = []
    plain.register_comm_hook(None, bucket_hook(sizes))
    train(plain, AdamW(plain.parameters(), **OPTIONS))
    for form, group in (("replicated", None), ("shared", dist.group.WORLD)):
        wrapped, optimizer = make(group)
        own: list[int] = []
        wrapped.register_comm_hook(None, bucket_hook(own))
        with Traffic() as traffic:
            train(wrapped, optimizer)
        ends[form] = {
            "weights": weights(wrapped.module),
            "folded": weights(opdf.fold(optimizer)),
            "owned": optimizer.program.owned(),
            "held": held(optimizer),
            "buckets": sum(own),
            "sent": traffic.sent,
            "calls": traffic.calls,
        }
    return {**ends, "plain buckets": sum(sizes), "cores": len(cores(optimizer))}


def loop(*, shared: bool, kind: str = "AdamW", batched: bool = False) -> dict[str, Any]:
    """Loss scaling with an overflow, clipping and accumulation, in float32."""
    group = dist.group.WORLD if shared else None
    student = build(dtype=torch.float32)
    wrapped, optimizer = make(
        group, student=student, kind={"AdamW": AdamW, "SGD": SGD}[kind], batched=batched
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    rank, ranks = dist.get_rank(), dist.get_world_size()
    scales, norms = [], []
    for step, (x, y) in enumerate(batches(6, torch.float32)):
        optimizer.zero_grad()
        for part in range(2):
            # The first micro-batch is not reduced; DDP adds it to what it reduces of the second.
            with wrapped.no_sync() if part == 0 else nullcontext():
                rows = share(x, rank, ranks)[part], share(y, rank, ranks)[part]
                loss = loss_of(wrapped, *rows) / 2
                overflow = step == 2 and part == 1 and rank == 1
                scaler.scale(loss * float("inf") if overflow else loss).backward()
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(wrapped.parameters(), 0.5)
        before = weights(wrapped.module)
        scaler.step(optimizer)
        if step == 2:
            skipped = all(torch.equal(v, before[n]) for n, v in weights(wrapped.module).items())
        scaler.update()
        scales.append(scaler.get_scale())
        norms.append(float(norm))
    return {"weights": weights(wrapped.module), "scales": scales, "norms": norms, "skip": skipped}


def changed_on_one_rank() -> dict[str, Any]:
    """Rank 1 writes to a weight behind the optimizer's back; then every way on is tried."""
    wrapped, optimizer = make(dist.group.WORLD)
    train(wrapped, optimizer)
    student = wrapped.module
    saved = student.head.weight.detach().clone()
    if dist.get_rank() == 1:
        with torch.no_grad():
            student.head.weight.add_(1.0)
    found = {
        "step": refused(optimizer.step),
        "refresh": refused(optimizer.program.refresh),
        "fold": refused(lambda: opdf.fold(optimizer)),
        "absorb": refused(optimizer.absorb),
    }
    with torch.no_grad():
        student.head.weight.copy_(saved)
    found["put back"] = refused(optimizer.step)
    with torch.no_grad():
        student.head.weight.copy_(2 * saved)
    absorbed = optimizer.absorb()
    kept = weights(student)
    folded = weights(opdf.fold(optimizer))
    train(wrapped, optimizer)
    return {
        **found,
        "absorbed": absorbed,
        "kept": kept,
        "folded": folded,
        "trained": weights(student),
    }


def not_a_number() -> dict[str, str]:
    """What one owner alone can see, every rank must hear of."""
    group = dist.group.WORLD
    wrapped, optimizer = make(group)
    if "head.weight" in optimizer.program.owned():
        with torch.no_grad():
            optimizer.program.cores("head.weight")[0].fill_(float("nan"))
    found = {"fold": refused(lambda: opdf.fold(optimizer))}
    student = build()
    with torch.no_grad():
        student.head.weight.fill_(float("nan"))
    found["hoist"] = refused(lambda: make(group, student=student))
    wrapped, optimizer = make(group)
    with torch.no_grad():
        wrapped.module.head.weight.fill_(float("nan"))
    found["absorb"] = refused(optimizer.absorb)
    return found


def two_groups() -> dict[str, Tensor]:
    """Four ranks reduce together; each pair shares a program."""
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    wrapped, optimizer = make(pairs[dist.get_rank() // 2])
    train(wrapped, optimizer)
    return weights(wrapped.module)


def not_a_member() -> str:
    """Rank 3 asks to share with ranks 0 to 2."""
    group = dist.new_group([0, 1, 2])
    if dist.get_rank() < 3:
        return "member"
    return refused(lambda: opdf.Overparam(build(), lr=0.1, process_group=group))


def small() -> nn.Module:
    """Fewer weights than ranks, and one of them not contiguous."""
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(12, 8), nn.Linear(8, 24), nn.Linear(24, OUT)).double()
    student[0].weight.data = student[0].weight.data.t().contiguous().t()
    return student


def without_cores(method: str) -> dict[str, Any]:
    """Weights that hold no cores are stepped on every rank, and written to no checkpoint twice."""
    wrapped, optimizer = make(
        dist.group.WORLD, cores=None, plan=opdf.plan(build(), parametrization=method, min_size=1)
    )
    alone, other = make(
        None, cores=None, plan=opdf.plan(build(), parametrization=method, min_size=1)
    )
    train(wrapped, optimizer)
    train(alone, other)
    return {
        "owned": optimizer.program.owned(),
        "direct": len(optimizer.program.direct),
        "weights": weights(wrapped.module),
        "unshared": weights(alone.module),
        "folded": weights(opdf.fold(optimizer)),
    }


def few_weights() -> dict[str, Any]:
    """A rank that owns nothing still gets every weight."""
    wrapped, optimizer = make(dist.group.WORLD, student=small())
    alone, other = make(None, student=small())
    train(wrapped, optimizer)
    train(alone, other)
    return {
        "owned": optimizer.program.owned(),
        "weights": weights(wrapped.module),
        "unshared": weights(alone.module),
        "strides": wrapped.module[0].weight.stride(),
    }


def nothing_to_share() -> dict[str, str]:
    """What would leave a rank without work, or each rank with a direction of its own."""
    group = dist.group.WORLD
    bare = nn.Sequential(nn.Linear(12, 8, bias=False), nn.Linear(8, 24, bias=False))
    return {
        "few": refused(lambda: opdf.Overparam(bare, cores=2, process_group=group)),
        "LBFGS": refused(
            lambda: opdf.Overparam(bare, torch.optim.LBFGS, cores=2, process_group=group)
        ),
    }


class Ear(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.heard.append(record.getMessage())


def state() -> dict[str, Any]:
    """A state_dict goes back to the rank that it came from, and to no other."""
    ear = Ear()
    logging.getLogger("opdf_compile").addHandler(ear)
    wrapped, optimizer = make(dist.group.WORLD)
    train(wrapped, optimizer)
    saved, model = optimizer.state_dict(), wrapped.module.state_dict()
    copy = {name: value.clone() for name, value in model.items()}
    others = everywhere(saved)
    again, resumed = make(dist.group.WORLD, student=build(Smooth, seed=9))
    neighbour = others[(dist.get_rank() + 1) % dist.get_world_size()]
    wrong = refused(lambda: resumed.load_state_dict(neighbour))
    resumed.load_state_dict(others[dist.get_rank()])
    again.module.load_state_dict(copy)
    for run in ((wrapped, optimizer), (again, resumed)):
        train(*run)
    logging.getLogger("opdf_compile").removeHandler(ear)
    return {
        "heard": ear.heard,
        "wrong": wrong,
        "went on": weights(wrapped.module),
        "resumed": weights(again.module),
    }
