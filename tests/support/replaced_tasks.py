"""Tasks: an Overparam that was built first, and its parameters replaced under it by fully_shard.

What prepares a model with its optimizer does so: new Parameters in the module, found by name, and
the same in the param groups, which hold placeholders in between so that the old memory can go.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from fsdp_tasks import overparam, shard, train
from shared_tasks import refused
from students import build, weights
from torch import nn

import opdf_compile as opdf


def prepare(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Shard a model, and put what stands under the old names into the optimizer's groups."""
    named = {id(parameter): name for name, parameter in model.named_parameters()}
    names = [[named[id(p)] for p in group["params"]] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["params"][:] = [torch.empty(1) for _ in group["params"]]
    shard(model)
    now = dict(model.named_parameters())
    for group, of in zip(optimizer.param_groups, names, strict=True):
        group["params"] = [now[name] for name in of]


def groups_of(model: nn.Module) -> list[dict[str, Any]]:
    """Weights and biases apart."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    return [
        {"params": matrices, "lr": 2e-2},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]


def against_one_process(
    *, shared: bool = False, options: dict[str, Any] | None = None, before: int = 0
) -> dict[str, Any]:
    """The same run prepared together, and in one process with the joined batch.

    Args:
        before: Steps with the joined batch before anything is sharded.
    """
    given = options or {}
    alone, model = build(), build()
    one = overparam(alone, **given)
    optimizer = overparam(model, shared=shared, **given)
    for student, opt in ((alone, one), (model, optimizer)):
        if before:
            train(student, opt, joined=True, steps=before)
    prepare(model, optimizer)
    train(alone, one, joined=True)
    train(model, optimizer)
    folded = weights(opdf.fold(optimizer, into=build(seed=5)))
    kept = optimizer.state_by_name()["norm.bias"]
    return {
        "folded": folded,
        "wanted": weights(alone),
        "kinds": {key: type(value).__name__ for key, value in kept.items()},
        "shown": len(optimizer.state),
        "groups": len(optimizer.inner.param_groups),
    }


def with_groups() -> dict[str, Any]:
    """Param groups stay what they are, and one more is added after it."""
    ends = []
    for together in (False, True):
        model = build()
        optimizer = overparam_of_groups(model)
        if together:
            prepare(model, optimizer)
        train(model, optimizer, joined=not together)
        folded = opdf.fold(optimizer, into=build()) if together else model
        ends.append(weights(folded))
        rates = [group["lr"] for group in optimizer.param_groups]
    return {"wanted": ends[0], "folded": ends[1], "rates": rates}


def overparam_of_groups(model: nn.Module) -> opdf.Overparam:
    return opdf.Overparam(groups_of(model), module=model, lr=1e-2, weight_decay=0.1, cores=3)


def at_once(folder: str) -> dict[str, Any]:
    """Fold, state and checkpoint right after it, before a step."""
    wanted = weights(build())
    ends = []
    for action in ("fold", "state", "checkpoint"):
        model = build()
        optimizer = overparam(model)
        prepare(model, optimizer)
        if action == "state":
            optimizer.load_state_dict(optimizer.state_dict())
        if action == "checkpoint":
            path = Path(folder) / "checkpoint"
            opdf.save_checkpoint(path, optimizer, step=0)
            opdf.load_checkpoint(path, optimizer)
        ends.append(weights(opdf.fold(optimizer, into=build(seed=4))))
    return {"wanted": wanted, "ends": ends}


def other_weights(*, before: int) -> dict[str, Any]:
    """Only rank 0 had the weights that are sharded out, as where one rank alone reads a file."""
    model = build(seed=dist.get_rank())
    optimizer = overparam(model)
    if before:
        train(model, optimizer, joined=True, steps=before)
    start = dict(build().named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.data = start[name].detach().clone()
    prepare(model, optimizer)
    if before:
        return {"refused": refused(lambda: train(model, optimizer))}
    train(model, optimizer)
    alone = build()
    train(alone, overparam(alone), joined=True)
    return {"folded": weights(opdf.fold(optimizer, into=build(seed=3))), "wanted": weights(alone)}


def groups_left_alone() -> str:
    """Sharded, but the groups still hold the old Parameters: clipping would miss the new ones."""
    model = build()
    optimizer = overparam(model)
    shard(model)
    return refused(lambda: train(model, optimizer))
