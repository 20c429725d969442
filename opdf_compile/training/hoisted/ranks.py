"""Who composes what: the parts of a weight program shared out over the ranks of a process group.

Under DDP every rank has the same dL/dW. Without sharing each rank pulls, steps and composes all of
it. With it, rank r does so for its own parts and broadcasts their W: cores and their optimizer
state exist once in the group, and a step moves the deployed parameters once more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from opdf_compile.errors import InputError, OpdfError
from opdf_compile.passes import ProgramPart
from opdf_compile.planning import Plan
from opdf_compile.training.hoisted.binding import Bound, mesh_groups
from opdf_compile.training.hoisted.checksums import checksums
from opdf_compile.training.hoisted.messages import Flight, schedule
from opdf_compile.training.hoisted.unit import Unit

_Result = TypeVar("_Result")


class ProgramRanks:
    """The ranks that share a program.

    Without a group this process runs all of it; `owners` is the rank of each weight's cores.
    """

    def __init__(self, group: Any, owners: Mapping[str, int], size: int = 1) -> None:
        """Find this process among the ranks."""
        self.group = group
        self.owners = dict(owners)
        self.size = size
        self.rank = 0 if group is None else _rank(group)

    def mine(self, part: ProgramPart) -> bool:
        """Whether this rank composes a part."""
        return self.group is None or self.owners[part.keys[0]] == self.rank

    def deliver(
        self,
        units: Iterable[Unit],
        bounds: Mapping[str, Bound],
        *,
        keep: bool,
        keys: Collection[str] | None = None,
    ) -> tuple[str, ...]:
        """Compose the weights, each where its cores are, and write them on all ranks.

        Args:
            units: What this rank composes.
            bounds: Every weight, in the plan's order.
            keep: Keep what the next pull needs.
            keys: The weights whose cores moved; the others keep their very bits. All if None, and
                where ranks share the program: they must send together, and may differ in this.

        Returns:
            Names of the weights that were written.
        """
        if self.group is None:
            written: list[str] = []
            for unit in units:
                if keys is not None and set(unit.keys).isdisjoint(keys):
                    continue
                for key, value in unit.refresh(keep=keep).items():
                    bounds[key].write(value)
                written.extend(unit.keys)
            return tuple(written)
        # Every rank goes through all messages in one order, also through those that it only
        # receives: a broadcast that one rank leaves out stops the others for good.
        home = {key: unit for unit in units for key in unit.keys}
        # A unit makes all its weights at once; those that travel in a later message wait in `made`.
        made: dict[str, Tensor] = {}
        flying: deque[Flight] = deque()
        for message in schedule(self.owners, bounds):
            mine = message.sender == self.rank
            for key in message.keys if mine else ():
                if key not in made:
                    made.update(home[key].refresh(keep=keep))
            values = [made.pop(key) for key in message.keys] if mine else None
            # Not all at once: what is under way may hold memory of its own.
            if len(flying) == 2 * self.size:
                flying.popleft().land()
            send = partial(self._send, sender=message.sender)
            flying.append(Flight([bounds[key] for key in message.keys], values, send))
        for flight in flying:
            flight.land()
        return tuple(bounds)

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
            # One by one, unlike `deliver`: a fold comes once, and what it holds is all in memory.
            self._send(values[key], sender=self.owners[key]).wait()
        return values

    def any(self, flags: Sequence[bool], bounds: Mapping[str, Bound]) -> list[bool]:
        """Each flag, raised where any rank raised it that shares cores or shards with this one."""
        groups = [] if self.group is None else [self.group]
        groups += mesh_groups(bound.parameter for bound in bounds.values())
        if not groups:
            return list(flags)
        import torch.distributed as dist

        device = next(iter(bounds.values())).device
        raised = torch.tensor(flags, dtype=torch.int32, device=device)
        # Along one axis of a mesh after the other: then a flag from anywhere has reached all ranks.
        for group in groups:
            dist.all_reduce(raised, op=dist.ReduceOp.MAX, group=group)
        return [bool(flag) for flag in raised.tolist()]

    def require_same(self, bounds: Mapping[str, Bound]) -> None:
        """Refuse ranks that disagree about a weight: what one owner makes of it goes to all.

        Raises:
            InputError: The same on every rank.
        """
        sharded = bool(mesh_groups(bound.parameter for bound in bounds.values()))
        if self.group is None or sharded or not bounds:
            return  # Of a sharded weight every rank reads the same whole.
        import torch.distributed as dist

        own = torch.stack(checksums(bound.local() for bound in bounds.values()))
        # The complement's maximum is the complement of the minimum.
        ends = torch.stack([own, own.bitwise_not()])
        dist.all_reduce(ends, op=dist.ReduceOp.MAX, group=self.group)
        differ = (ends[0] != ends[1].bitwise_not()).any(1).tolist()
        odd = [key for key, answer in zip(bounds, differ, strict=True) if answer]
        if odd:
            raise InputError(
                f"the {self.size} ranks hold different values of {odd[0]!r} ({len(odd)} of "
                f"{len(bounds)} weights differ), wanted the same student on each; wrap it in DDP "
                "first, which sends rank 0's, or load the same weights on every rank"
            )

    def together(self, action: Callable[[], _Result]) -> _Result:
        """Run what may fail on one rank alone; a failure anywhere is raised everywhere.

        A rank that raised alone would leave the others waiting for it.
        """
        if self.group is None:
            return action()
        import torch.distributed as dist

        failure: OpdfError | None = None
        try:
            result = action()
        # No other class: what is wrong with one rank's data is an OpdfError, all else is a bug, and
        # a bug ends the process, which the launcher sees.
        except OpdfError as error:
            failure = error
        told: list[Any] = [None] * self.size
        dist.all_gather_object(told, failure and (type(failure), str(failure)), group=self.group)
        if failure is not None:
            raise failure
        for rank, other in enumerate(told):
            if other is not None:
                raise other[0](f"rank {rank} of {self.size} stopped: {other[1]}")
        return result

    def _send(self, tensor: Tensor, *, sender: int) -> Any:
        import torch.distributed as dist

        source = dist.get_global_rank(self.group, sender)
        return dist.broadcast(tensor, source, group=self.group, async_op=True)


def _rank(group: Any) -> int:
    import torch.distributed as dist

    rank = dist.get_rank(group)
    if rank < 0:
        raise InputError("this process is no member of the process_group given, wanted a member")
    return rank


def share_out(parts: Sequence[ProgramPart], plan: Plan, group: Any) -> ProgramRanks:
    """Give each part to a rank, largest first, always to the rank that it loads least.

    A rank's load is the larger of two shares: of all FLOPs, which set its time, and of all core
    parameters, which set its memory. The same plan gives the same answer on every rank.
    """
    if group is None:
        return ProgramRanks(None, {})
    import torch.distributed as dist

    _rank(group)  # First: outside the group its size is unknown too.
    ranks = dist.get_world_size(group)
    return ProgramRanks(group, assign(part_costs(parts, plan), ranks), ranks)


def part_costs(
    parts: Sequence[ProgramPart], plan: Plan
) -> dict[tuple[str, ...], tuple[float, float]]:
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
    """The rank of every weight, by the rule of `share_out`."""
    # Graham's rule (1969): of one kind of cost the fullest rank gets at most 4/3 of what the best
    # division would give it. Every rank works this out by itself, so ties go by names and numbers.
    loads = [(0.0, 0.0)] * ranks
    owners: dict[str, int] = {}
    for keys, (time, memory) in sorted(costs.items(), key=lambda item: (-max(item[1]), item[0])):
        after = [(load[0] + time, load[1] + memory) for load in loads]
        rank = min(range(ranks), key=lambda r: (max(after[r]), after[r], r))
        loads[rank] = after[rank]
        owners.update(dict.fromkeys(keys, rank))
    return owners
