"""Tasks: students with branches under DistributedDataParallel."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from sites import Stack, batch, stirred
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel as DDP

import opdf_compile as opdf


def branched(form: str) -> Any:
    torch.manual_seed(0)
    plain = stirred(Stack()).double()
    return opdf.branch(plain, opdf.plan(opdf.trace(plain, (batch(),)), parametrization=form))


def train(model: nn.Module, seeds: list[int]) -> None:
    inner = torch.optim.SGD(model.parameters(), lr=0.05)
    model.train()
    for seed in seeds:
        inner.zero_grad()
        model(batch(seed=seed)).square().mean().backward()
        inner.step()


def frozen(model: Any) -> Any:
    """Norms that take no statistics of a batch: then two halves make one whole."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.register_forward_pre_hook(lambda norm, _given: norm.eval() and None)
    return model


def trained(form: str) -> dict[str, Any]:
    """Each rank has its own batches; rank 0's statistics are sent around."""
    wrapped = DDP(branched(form))
    train(wrapped, [2 * seed + dist.get_rank() for seed in range(3)])
    wrapped(batch())  # Before a forward rank 0's buffers are sent to all.
    folded = opdf.fold(wrapped.module).eval()
    return {
        "state": dict(folded.state_dict()),
        "error": float((folded(batch()) - wrapped.module.eval()(batch())).detach().abs().max()),
    }


def of_frozen_norms(form: str) -> dict[str, Any]:
    """Mean of the ranks' gradients, and the gradient of one process on both batches."""
    wrapped = DDP(frozen(branched(f"{form}(start=published)")))
    wrapped.train()(batch(seed=dist.get_rank())).square().mean().backward()
    alone = frozen(branched(f"{form}(start=published)"))
    alone.train()(torch.cat([batch(seed=0), batch(seed=1)])).square().mean().backward()
    return {
        "found": gradients(wrapped.module),
        "wanted": gradients(alone),
    }


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
