"""Tasks: an aligned weight program, shared out over the ranks or not."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
import torch.distributed as dist
from ddp_tasks import train
from shared_tasks import make, refused
from students import build, weights

import opdf_compile as opdf


def alignment(**options: Any) -> opdf.CoreAlignment:
    """The same teacher on every rank."""
    guide = build(seed=1)
    pairs = [(key, key) for key, p in guide.named_parameters() if p.ndim == 2]
    return opdf.CoreAlignment(guide, pairs, weight=0.5, **options)


def against_replicated() -> dict[str, Any]:
    """The same aligned run shared out and not."""
    ends: dict[str, Any] = {}
    for form, group in (("replicated", None), ("shared", dist.group.WORLD)):
        fixed = alignment()
        wrapped, optimizer = make(group, alignment=fixed)
        train(wrapped, optimizer)
        last = torch.zeros(()).double() if fixed.last is None else fixed.last.clone()
        if group is not None:
            dist.all_reduce(last)
        ends[form] = {
            "weights": weights(wrapped.module),
            "last": float(last),
            "targets": sorted(fixed.targets),
            "owned": sorted(optimizer.program.owned()),
        }
    return ends


def resumed() -> dict[str, Any]:
    """A shared run from a checkpoint, against the run that wrote it."""
    folder: list[Any] = [tempfile.mkdtemp() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(folder)
    wrapped, optimizer = make(dist.group.WORLD, alignment=alignment())
    train(wrapped, optimizer)
    opdf.save_checkpoint(folder[0], optimizer, step=1)
    train(wrapped, optimizer)
    again, other = make(dist.group.WORLD, student=build(seed=5), alignment=alignment())
    opdf.load_checkpoint(folder[0], other)
    train(again, other)
    return {"first": weights(wrapped.module), "second": weights(again.module)}


def broken_on_one_rank() -> str:
    """One weight of the teacher is NaN; only its owner decomposes it."""
    guide = build(seed=1)
    with torch.no_grad():
        guide.head.weight[0, 0] = float("nan")
    pairs = [(key, key) for key, p in guide.named_parameters() if p.ndim == 2]
    return refused(lambda: make(dist.group.WORLD, alignment=opdf.CoreAlignment(guide, pairs)))
