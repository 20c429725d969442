"""The value that `trace` returns: a model as graphs, and what the tracer had to give up.

rung        what the graph of a phase keeps
----------  ------------------------------------------------------------------------------
dynamic     every axis that was asked for
auto        every axis was asked for, and torch.export fixed those that the model fixes
auto-given  as auto, but axes whose example size is 1 are fixed
by-axis     the axes that the model bears, found one after the other
static      no free axis
module      no graph: the phase runs as the user's own module (hoisted form)
given       a program that came without its request
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

from opdf_compile.graph import dynamic_axes as axes_of
from opdf_compile.graph.dynamic_axes import AxisNames
from opdf_compile.graph.recorded import recorded_inputs
from opdf_compile.graph.signature import CallArguments

Phase = Literal["train", "eval"]
PHASES: tuple[Phase, ...] = ("train", "eval")
MODULE_RUNG = "module"
# From the highest to the lowest.
RUNGS = ("given", "dynamic", "auto", "auto-given", "by-axis", "static", MODULE_RUNG)


@dataclass(frozen=True, eq=False)
class Traced:
    """A model as graphs.

    Attributes:
        source: What was traced.
        programs: The ExportedProgram of each phase that has a graph.
        graphs: The unlifted graph module of each such phase, sharing parameters with each other
            and, where `source` is a module, with it.
        args: Positional example inputs.
        kwargs: Keyword example inputs.
        input_names: Names of the tensor inputs, in the program's order.
        output_names: Names of the outputs, in the eval program's order; empty without a graph.
        axis_names: The dynamic axes of each input that torch.export kept, by name; those of the
            eval graph, where there is one.
        dynamic_shapes: The request that torch.export granted, to export again with.
        rungs: For each phase that was traced, the rung of the ladder that held.
        reasons: For each phase on the rung "module", why no graph holds it.
        notes: Sentences on what was given up on the way.
    """

    source: nn.Module | ExportedProgram
    programs: Mapping[Phase, ExportedProgram]
    graphs: Mapping[Phase, GraphModule]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    axis_names: AxisNames
    dynamic_shapes: dict[str, Any] | None
    rungs: Mapping[Phase, str]
    reasons: Mapping[Phase, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def rung(self) -> str:
        """The lowest rung of its phases."""
        return max(self.rungs.values(), key=RUNGS.index)

    @property
    def graph(self) -> GraphModule | None:
        """The graph to count a training step by: train, or else eval, or None."""
        return self.graphs.get("train") or self.graphs.get("eval")

    def example(self) -> CallArguments:
        """Example inputs whose dynamic axes are at least 2.

        Those that were given, widened; for a program that came without any, tensors of the
        recorded shapes (ones for integers, so that they index any table of two rows or more).
        """
        if not self.args and not self.kwargs:
            program = self.programs.get("train") or self.programs.get("eval")
            return recorded_inputs(program) if program is not None else ((), {})
        free = self.axis_names
        for program in self.programs.values():
            free = axes_of.kept_axes(program, self.input_names, free)
        return axes_of.widen_axes((self.args, self.kwargs), self.input_names, free)
