"""The stages of a graph's way to an expanded one, timed one by one, without the decomposition.

A decomposition takes as long as its matrices are large, which says nothing about graphs. It is left
out by the product's own means: `Unfilled` is a parametrization like the MPO whose cores are not
computed. Everything else that expand does is done.

What torch itself does inside `opdf.trace` is told apart: torch.export.export, and
ExportedProgram.module (called "unlift").
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.parametrizations import registry
from opdf_compile.parametrizations.mpo import Mpo
from opdf_compile.parametrizations.mpo_spec import MpoSpec

UPSTREAM = ("export", "unlift")
OWN = ("trace", "match", "plan", "expand")
STAGES = (*UPSTREAM, *OWN)


class Unfilled(Mpo):
    """The MPO without its SVDs: cores of the right shapes that hold nothing of the weight."""

    def __init__(self) -> None:
        """The MPO under another name."""
        super().__init__(name="mpo-unfilled")

    def decompose(
        self, weight: Tensor, spec: MpoSpec, *, device: torch.device | str | None = None
    ) -> tuple[Tensor, ...]:
        """Tensors of the cores' shapes; memory that nobody writes costs nothing."""
        dtype = self.core_dtype(spec)
        return tuple(torch.empty(s, dtype=dtype, device=weight.device) for s in self.shapes(spec))


@dataclass
class Times:
    """Seconds by stage, of the processor and of the clock on the wall.

    Attributes:
        cpu: What this process computed; does not see how busy the machine is.
        wall: What a user waits for.
        nodes: Nodes of the traced train graph.
        weights: Planned weights.
    """

    cpu: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    wall: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    nodes: int = 0
    weights: int = 0

    @contextmanager
    def stage(self, name: str, *, of: str | None = None) -> Iterator[None]:
        """Add the time of the block to a stage, and take it off the stage around it."""
        cpu, wall = time.process_time(), time.perf_counter()
        try:
            yield
        finally:
            for clock, spent in (
                (self.cpu, time.process_time() - cpu),
                (self.wall, time.perf_counter() - wall),
            ):
                clock[name] += spent
                if of is not None:
                    clock[of] -= spent


def measure(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], cores: int) -> Times:
    """Trace, match, plan and expand a model once.

    Args:
        model: Left as it is.
        args: Positional example inputs.
        kwargs: Keyword example inputs.
        cores: Cores per weight.
    """
    if Unfilled().name not in registry.registered_names():
        registry.register(Unfilled())
    times = Times()
    gc.collect()
    with _torch_apart(times), times.stage("trace"):
        traced = opdf.trace(model, args, kwargs)
    with times.stage("match"):
        opdf.match(traced)
    with times.stage("plan"):
        plan = opdf.plan(traced, cores=cores, parametrization=Unfilled().name)
    with times.stage("expand"):
        opdf.expand(traced, plan)
    times.nodes = len(traced.graphs["train"].graph.nodes)
    times.weights = len(plan.entries)
    return times


@contextmanager
def _torch_apart(times: Times) -> Iterator[None]:
    """Time the two functions of torch that trace calls, for the block only."""
    export, module = torch.export.export, torch.export.ExportedProgram.module

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with times.stage(name, of="trace"):
                return function(*args, **kwargs)

        return call

    torch.export.export = timed("export", export)
    torch.export.ExportedProgram.module = timed("unlift", module)  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.export.export = export
        torch.export.ExportedProgram.module = module  # type: ignore[method-assign]
