"""Outputs that are no tensors: a number, a text, or a size that follows from the inputs.

A file holds what is computed from tensors, and torch's exporter fails on any other output but None.
Such an output therefore becomes None before the translation, which leaves it out of the file.
"""

from __future__ import annotations

import copy
from typing import Any

from torch.export import ExportedProgram
from torch.export.graph_signature import (
    ConstantArgument,
    OutputSpec,
    SymBoolArgument,
    SymFloatArgument,
    SymIntArgument,
)
from torch.fx import Graph, GraphModule

from opdf_compile.io.evidence.rebuilt import rebuilt


def without_constants(program: ExportedProgram) -> ExportedProgram:
    """The program whose outputs are tensors and None; itself where they are already.

    Args:
        program: It is not changed; the copy reads the same weights.
    """
    specs = program.graph_signature.output_specs
    if not any(_is_constant(spec) for spec in specs):
        return program
    signature = copy.copy(program.graph_signature)
    signature.output_specs = [
        OutputSpec(s.kind, ConstantArgument(s.arg.name, None), s.target) if _is_constant(s) else s
        for s in specs
    ]
    graph = _emptied_graph(program, specs)
    return rebuilt(program, program.graph_module, graph, signature=signature)


def _is_constant(spec: OutputSpec) -> bool:
    if isinstance(spec.arg, ConstantArgument):
        return spec.arg.value is not None
    return isinstance(spec.arg, SymIntArgument | SymFloatArgument | SymBoolArgument)


def _emptied_graph(program: ExportedProgram, specs: list[OutputSpec]) -> Graph:
    fresh = Graph()
    mapped: dict[Any, Any] = {}
    returned = fresh.graph_copy(program.graph, mapped)
    for old, new in mapped.items():
        new.meta = dict(old.meta)
    assert isinstance(returned, tuple | list)
    kept = [None if _is_constant(s) else value for value, s in zip(returned, specs, strict=True)]
    fresh.output(tuple(kept))
    GraphModule(program.graph_module, fresh)  # Gives the graph the module that it reads from.
    return fresh
