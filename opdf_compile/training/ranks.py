"""Who composes what: the parts of a weight program shared out over the ranks of a process group.

Under DDP every rank has the same dL/dW. Without sharing each rank pulls, steps and composes all of
it. With it, rank r does so for its own parts and broadcasts their W: cores and their optimizer
state exist once in the group, and a step moves the deployed parameters once more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from opdf_compile.errors import InputError
from opdf_compile.passes.hoist import Part
from opdf_compile.plan.value import Plan
from opdf_compile.training.binding import Bound, is_sharded


class Ranks:
    """The ranks that share a program.

    Args:
        group: A torch.distributed process group, or None: then this process runs all of it.
        owners: For each weight the rank that holds its cores.
        size: Number of ranks.
    """

    def __init__(self, group: Any, owners: Mapping[str, int], size: int = 1) -> None:
        """Find this process among the ranks."""
        self.group = group
        self.owners = dict(owners)
        self.size = size
        self.rank = 0 if group is None else _rank(group)

    def mine(self, part: Part) -> bool:
        """Whether this rank composes a part."""
        return self.group is None or self.owners[part.keys[0]] == self.rank

    def broadcast(self, bounds: Mapping[str, Bound]) -> None:
        """Send every weight from its owner to the others; all ranks call it."""
        if self.group is None:
            return
        sharded = is_sharded(bound.parameter for bound in bounds.values())
        work = []
        for key, bound in bounds.items():
            value = bound.read() if sharded else bound.local()
            sent = value if value.is_contiguous() else value.contiguous()
            work.append((bound, value, sent, self._send(sent, key)))
        for bound, value, sent, handle in work:
            handle.wait()
            if sharded or sent is not value:
                bound.write(sent)

    def gather(self, mine: Mapping[str, Tensor], bounds: Mapping[str, Bound]) -> dict[str, Tensor]:
        """Values that each owner has made, on all ranks, in the order of `bounds`."""
        if self.group is None:
            return dict(mine)
        values = {}
        for key, bound in bounds.items():
            value = mine.get(key)
            if value is None:
                dtype, device = bound.parameter.dtype, bound.device
                value = torch.empty(bound.entry.spec.shape, dtype=dtype, device=device)
            values[key] = value.contiguous()
            self._send(values[key], key).wait()
        return values

    def any(self, flags: Sequence[bool], *, sharded: bool, device: torch.device) -> list[bool]:
        """Each flag, raised where any rank raised it; ranks that share nothing answer alone."""
        if self.group is None and not sharded:
            return list(flags)
        import torch.distributed as dist

        raised = torch.tensor(flags, dtype=torch.int32, device=device)
        dist.all_reduce(raised, op=dist.ReduceOp.MAX, group=self.group)
        return [bool(flag) for flag in raised.tolist()]

    def _send(self, tensor: Tensor, key: str) -> Any:
        import torch.distributed as dist

        source = dist.get_global_rank(self.group, self.owners[key])
        return dist.broadcast(tensor, source, group=self.group, async_op=True)


def _rank(group: Any) -> int:
    import torch.distributed as dist

    rank = dist.get_rank(group)
    if rank < 0:
        raise InputError("this process is no member of the process_group given, wanted a member")
    return rank


def share_out(parts: Sequence[Part], plan: Plan, group: Any) -> Ranks:
    """Give each part to a rank, largest first, always to the rank that it loads least.

    A rank's load is the larger of two shares: of all FLOPs, which set its time, and of all core
    parameters, which set its memory. The same plan gives the same answer on every rank.

    Args:
        parts: The parts of the plan's program.
        plan: Tells what each weight costs.
        group: A process group, or None.
    """
    if group is None:
        return Ranks(None, {})
    import torch.distributed as dist

    _rank(group)  # First: outside the group its size is unknown too.
    ranks = dist.get_world_size(group)
    return Ranks(group, assign(part_costs(parts, plan), ranks), ranks)


def part_costs(parts: Sequence[Part], plan: Plan) -> dict[tuple[str, ...], tuple[float, float]]:
    """For each part, by its keys, its share of all FLOPs and of all core parameters."""
    costs = {entry.key: entry.cost for entry in plan.entries}
    flops = sum(cost.step_flops for cost in costs.values())
    size = sum(cost.parameters for cost in costs.values())
    return {
        part.keys: (
            sum(costs[key].step_flops for key in part.keys) / max(flops, 1),
            sum(costs[key].parameters for key in part.keys) / max(size, 1),
        )
        for part in parts
    }


def assign(costs: Mapping[tuple[str, ...], tuple[float, float]], ranks: int) -> dict[str, int]:
    """The rank of every weight, by the rule of `share_out`.

    Args:
        costs: For each part, by its keys, two kinds of cost.
        ranks: Number of ranks.
    """
    loads = [(0.0, 0.0)] * ranks
    owners: dict[str, int] = {}
    for keys, (time, memory) in sorted(costs.items(), key=lambda item: (-max(item[1]), item[0])):
        after = [(load[0] + time, load[1] + memory) for load in loads]
        rank = min(range(ranks), key=lambda r: (max(after[r]), after[r], r))
        loads[rank] = after[rank]
        owners.update(dict.fromkeys(keys, rank))
    return owners
