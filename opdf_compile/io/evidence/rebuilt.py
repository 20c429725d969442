"""An exported program around another graph of the same inputs, with the same weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature
from torch.fx import Graph, GraphModule


def rebuilt(
    program: ExportedProgram,
    root: GraphModule,
    graph: Graph,
    *,
    signature: ExportGraphSignature | None = None,
    constants: Mapping[str, Any] | None = None,
) -> ExportedProgram:
    """The program with another graph.

    Args:
        program: It is not changed; the result reads the same weights.
        root: Holds the nested graphs.
        graph: Takes the program's inputs in the same order.
        signature: Where outputs changed their kind.
        constants: Where constants changed.
    """
    # A copy of a graph renames inputs that are called as Python's builtins are ("input"), and the
    # signature knows them by name.
    olds, news = ([n for n in g.nodes if n.op == "placeholder"] for g in (program.graph, graph))
    for old, new in zip(olds, news, strict=True):
        new.name, new.target = old.name, old.target
    return ExportedProgram(
        root=root,
        graph=graph,
        graph_signature=signature or program.graph_signature,
        state_dict=program.state_dict,
        range_constraints=program.range_constraints,
        module_call_graph=program.module_call_graph,
        example_inputs=program.example_inputs,
        constants=dict(program.constants if constants is None else constants),
        verifiers=program.verifiers,
    )
