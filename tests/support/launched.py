"""A training script as a user would launch it on several processes.

    torchrun --nproc-per-node 2 launched.py OUT [--share]
    torchrun --nproc-per-node 2 launched.py OUT --fsdp
    accelerate launch --multi_gpu --num_processes 2 launched.py OUT --accelerate

Each rank writes a checksum of its folded weights to OUT/RANK.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import torch.distributed as dist
from students import batches, build, loss_of, share
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

import opdf_compile as opdf


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--share", action="store_true")
    parser.add_argument("--accelerate", action="store_true")
    parser.add_argument("--fsdp", action="store_true", help="with Accelerate, prepared together")
    options = parser.parse_args()
    torch.set_num_threads(1)
    student = build()
    if options.accelerate or options.fsdp:
        folded, rank, ranks = (sharded if options.fsdp else accelerated)(student)
    else:
        dist.init_process_group("gloo")
        rank, ranks = dist.get_rank(), dist.get_world_size()
        group = dist.group.WORLD if options.share else None
        model = DDP(student)
        folded = trained(model, opdf.Overparam(model, lr=1e-2, cores=3, process_group=group))
    total = sum(float(p.detach().double().sum()) for p in folded.parameters())
    # One digit more than a float64 needs, so that equal texts are equal bits.
    told = {"kind": type(folded).__name__, "ranks": ranks, "total": f"{total:.18e}"}
    torch.save(folded.state_dict(), options.out / f"{rank}.pt")
    (options.out / f"{rank}.json").write_text(json.dumps(told))
    if dist.is_initialized():
        dist.destroy_process_group()


def trained(model: nn.Module, optimizer: opdf.Overparam) -> nn.Module:
    for x, y in batches(5):
        optimizer.zero_grad()
        rank, ranks = dist.get_rank(), dist.get_world_size()
        loss_of(model, share(x, rank, ranks), share(y, rank, ranks)).backward()
        optimizer.step()
    return opdf.fold(optimizer)


def accelerated(student: nn.Module) -> tuple[nn.Module, int, int]:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = accelerator.prepare(student)
    inner = opdf.Overparam(model, lr=1e-2, cores=3)
    optimizer = accelerator.prepare(inner)
    for x, y in batches(5):
        optimizer.zero_grad()
        rows = (share(t, accelerator.process_index, accelerator.num_processes) for t in (x, y))
        accelerator.backward(loss_of(model, *rows))
        optimizer.step()
    return opdf.fold(inner), accelerator.process_index, accelerator.num_processes


def sharded(student: nn.Module) -> tuple[nn.Module, int, int]:
    """FSDP2 as the docs say it: model and optimizer are prepared together."""
    from accelerate import Accelerator
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="no_wrap")
    accelerator = Accelerator(cpu=True, fsdp_plugin=plugin)
    # On a CPU Accelerate leaves the plugin out and wraps in DDP, without a word.
    accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = plugin
    inner = opdf.Overparam(student, lr=1e-2, cores=3)
    model, optimizer = accelerator.prepare(student, inner)
    for x, y in batches(5):
        optimizer.zero_grad()
        rows = (share(t, accelerator.process_index, accelerator.num_processes) for t in (x, y))
        accelerator.backward(loss_of(model, *rows))
        accelerator.clip_grad_norm_(model.parameters(), 1e9)
        optimizer.step()
    folded = opdf.fold(inner, into=build(seed=1))
    return folded, accelerator.process_index, accelerator.num_processes


if __name__ == "__main__":
    main()
