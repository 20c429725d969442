"""Every allocation of torch's CPU allocator, in order: what is live when, and what belongs to whom.

torch's profiler reports each allocation and release with its address, workspaces inside operators
included. That is exact and does not depend on the machine's load, where the resident set size of a
process also counts what malloc keeps and what the interpreter has loaded.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from opdf_compile.errors import InternalError


class Block(NamedTuple):
    """A piece of memory from its allocation to its release (infinity: still live at the end).

    Times are the profiler's, in microseconds.
    """

    address: int
    size: int
    begin: float
    end: float


@dataclass(frozen=True)
class Allocations:
    """What was allocated while recording.

    Attributes:
        blocks: Every allocation, by begin.
        moments: Begin and end of each marked span, by its name; of the last one of that name.
    """

    blocks: tuple[Block, ...]
    moments: Mapping[str, tuple[float, float]]

    def peak(self, span: str, without: Collection[Block] = ()) -> int:
        """The most bytes live at once within a span.

        Args:
            span: Its name.
            without: Blocks that do not count.
        """
        begin, end = self.moments[span]
        left_out = set(without)
        changes = sorted(
            (moment, step)
            for block in self.blocks
            if block not in left_out
            # At one moment releases come first: the allocator may hand a piece on at once.
            for moment, step in ((block.begin, block.size), (block.end, -block.size))
            if moment <= end
        )
        live = most = 0
        for moment, step in changes:
            if moment >= begin:
                most = max(most, live)
            live += step
        return max(most, live)

    def holding(self, addresses: Iterable[int], moment: float) -> set[Block]:
        """The blocks that are live at a moment at these addresses.

        Raises:
            InternalError: There is none at one of them.
        """
        live = {b.address: b for b in self.blocks if b.begin <= moment < b.end}
        return {_found(live, address) for address in addresses}


def addresses(tensors: Iterable[Tensor]) -> set[int]:
    """Addresses of the tensors' storages, each once; empty ones have none."""
    storages = (tensor.untyped_storage() for tensor in tensors)
    return {storage.data_ptr() for storage in storages if storage.nbytes()}


@contextmanager
def recording() -> Iterator[Callable[[], Allocations]]:
    """Record while the block runs; call what it gives afterwards.

    Spans are marked with `torch.profiler.record_function`.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        yield lambda: _read(recorded)


def _read(recorded: Any) -> Allocations:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(path))
        trace = json.loads(path.read_text(encoding="utf-8"))
    return parse(trace["traceEvents"])


def parse(events: Iterable[Mapping[str, Any]]) -> Allocations:
    """Read the events of a chrome trace.

    Releases of what was allocated before the recording are passed over.
    """
    moments: dict[str, tuple[float, float]] = {}
    steps: list[tuple[float, int, int]] = []
    for event in events:
        if event.get("cat") == "user_annotation":
            moments[event["name"]] = (event["ts"], event["ts"] + event["dur"])
        elif event.get("name") == "[memory]" and event["args"]["Device Type"] == 0:
            steps.append((event["ts"], event["args"]["Addr"], event["args"]["Bytes"]))
    live: dict[int, Block] = {}
    done: list[Block] = []
    for moment, address, size in sorted(steps, key=lambda step: step[0]):
        if size > 0:
            live[address] = Block(address, size, moment, math.inf)
        elif address in live:
            done.append(live.pop(address)._replace(end=moment))
    blocks = sorted((*done, *live.values()), key=lambda block: block.begin)
    return Allocations(tuple(blocks), moments)


def _found(live: Mapping[int, Block], address: int) -> Block:
    if address not in live:
        raise InternalError("a tensor's memory is not among the allocations that were recorded")
    return live[address]
