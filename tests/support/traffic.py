"""Bytes that a rank sends, by the usual algorithms for large messages.

With n bytes and R ranks a rank sends on average: all-reduce 2 n (R-1)/R (ring), broadcast,
all-gather and reduce-scatter n (R-1)/R, where n is the whole tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.futures import Future
from torch.utils._python_dispatch import TorchDispatchMode

# How often the whole tensor counts, in units of (R-1)/R; by the names of both kinds of collective.
PASSES = {
    "allreduce_": 2,
    "all_reduce": 2,
    "broadcast_": 1,
    "broadcast": 1,
    "_allgather_base_": 1,
    "allgather_": 1,
    "all_gather_into_tensor": 1,
    "_reduce_scatter_base_": 1,
    "reduce_scatter_tensor": 1,
}
SILENT = {"wait_tensor", "barrier", "_make_placeholder"}


class Traffic(TorchDispatchMode):
    """Counts every collective that is called from Python while it is entered.

    Attributes:
        sent: Bytes that this rank sends, by the factors above.
        calls: Names of the collectives.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sent = 0.0
        self.calls: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        space, _, name = func._schema.name.partition("::")
        if space in ("c10d", "_c10d_functional") and name not in SILENT:
            largest = max(t.nbytes for t in _tensors((args, result)))
            self.count(name, largest)
        return result

    def count(self, name: str, size: int) -> None:
        ranks = dist.get_world_size()
        self.calls.append(name)
        self.sent += PASSES[name] * size * (ranks - 1) / ranks


def _tensors(nested: Any) -> Iterator[Tensor]:
    if isinstance(nested, Tensor):
        yield nested
    elif isinstance(nested, list | tuple):
        for item in nested:
            yield from _tensors(item)


def bucket_hook(sizes: list[int]) -> Callable[[Any, Any], Future[Tensor]]:
    """A communication hook for DDP that notes the bytes of every bucket that is reduced."""

    def hook(state, bucket):  # type: ignore[no-untyped-def]  # DDP refuses annotations that are text.
        sizes.append(bucket.buffer().nbytes)
        # Not seen by a Traffic around the backward: what the hook counts is counted once.
        with torch.utils._python_dispatch._disable_current_modes():
            return allreduce_hook(state, bucket)

    return hook
