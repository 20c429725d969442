"""Tasks: DistributedDataParallel around the student, Overparam over it."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from students import Noisy, Smooth, batches, build, loss_of, share, weights
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.optim import AdamW, Optimizer
from traffic import Traffic, bucket_hook

import opdf_compile as opdf

OPTIONS: dict[str, Any] = {"lr": 1e-2, "weight_decay": 0.1}
STEPS = 20


def train(model: nn.Module, optimizer: Optimizer, *, joined: bool = False) -> None:
    """Steps on this rank's rows of each batch, or on all of it."""
    rank, ranks = (0, 1) if joined else (dist.get_rank(), dist.get_world_size())
    for x, y in batches(STEPS):
        optimizer.zero_grad()
        loss_of(model, share(x, rank, ranks), share(y, rank, ranks)).backward()
        optimizer.step()


def cores(optimizer: opdf.Overparam) -> dict[str, Tensor]:
    """Every core that this rank holds."""
    program = optimizer.program
    return {
        f"{key}.{place}": core.detach().clone()
        for key in program.owned()
        for place, core in enumerate(program.cores(key))
    }


def trajectory() -> dict[str, Any]:
    """The plain student, the over-parameterised one, and one process on the joined batch."""
    sizes: dict[str, list[int]] = {"plain": [], "over": []}
    others: dict[str, list[str]] = {}
    plain, wrapped = DDP(build()), DDP(build())
    optimizer = opdf.Overparam(wrapped, AdamW, cores=3, **OPTIONS)
    runs = {"plain": (plain, AdamW(plain.parameters(), **OPTIONS)), "over": (wrapped, optimizer)}
    for form, (model, stepped) in runs.items():
        model.register_comm_hook(None, bucket_hook(sizes[form]))
        with Traffic() as traffic:
            train(model, stepped)
        others[form] = traffic.calls

    alone = build()
    train(alone, opdf.Overparam(alone, AdamW, cores=3, **OPTIONS), joined=True)
    return {
        "sizes": sizes,
        "others": others,
        "weights": weights(wrapped.module),
        "folded": weights(opdf.fold(optimizer)),
        "cores": cores(optimizer),
        "alone": weights(alone),
        "plain": weights(plain.module),
    }


def without_reduction() -> dict[str, Tensor]:
    """A wrong run: each rank steps on its own gradients."""
    wrapped = DDP(build())
    optimizer = opdf.Overparam(wrapped, AdamW, cores=3, **OPTIONS)
    with wrapped.no_sync():
        train(wrapped, optimizer)
    return weights(wrapped.module)


def noisy() -> dict[str, Any]:
    """BatchNorm and dropout: each rank has statistics of its own, rank 0's are sent around."""
    wrapped = DDP(build(Noisy))
    optimizer = opdf.Overparam(wrapped, AdamW, cores=2, **OPTIONS)
    torch.manual_seed(dist.get_rank())
    train(wrapped, optimizer)
    folded = opdf.fold(optimizer)
    trained = {name: p.detach() for name, p in folded.named_parameters()}
    return {"kind": type(folded).__name__, "trained": trained}


def order(first: str, *, shared: bool) -> dict[str, Any]:
    """Students that start differently on each rank, wrapped in DDP before or after Overparam."""
    student: nn.Module = build(Smooth, seed=dist.get_rank())
    group = dist.group.WORLD if shared else None
    try:
        if first == "ddp":
            student = DDP(student)
        optimizer = opdf.Overparam(student, AdamW, cores=3, process_group=group, **OPTIONS)
        wrapped = student if first == "ddp" else DDP(student)
        x, y = next(batches(1))
        loss_of(wrapped, x, y).backward()
        optimizer.step()
    except opdf.errors.UserError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"weights": weights(optimizer.program.module)}
