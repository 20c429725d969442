"""A phase of an Expanded, or any graph module, as an ExportedProgram that stands alone.

The program's outputs are plain tensors, tuples, lists and dicts, its parameters have the names of
the state dict, and the axes that were dynamic are dynamic.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import nn
from torch.export import ExportedProgram
from torch.fx import Graph, GraphModule
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo

from opdf_compile.graph import (
    PHASES,
    CallArguments,
    Phase,
    bind_forward,
    copied,
    over_tensors_of,
    plain_spec,
    quiet_libraries,
    recorded_inputs,
    recorded_request,
)
from opdf_compile.passes import GraphPass, PassResult, Pipeline
from opdf_compile.training.inline.expanded import Expanded


def programs_of(expanded: Expanded) -> dict[str, ExportedProgram]:
    """The two programs of an archive: "model" is the training graph, "eval" the other."""
    names = {"train": "model", "eval": "eval"}
    return {names[phase]: phase_program(expanded, phase) for phase in PHASES}


def phase_program(expanded: Expanded, phase: Phase) -> ExportedProgram:
    """One phase as a program.

    The parameters of the Expanded become the program's own, by reference.
    """
    part, convention = expanded.phase(phase), expanded.convention
    names = [*convention.names, *convention.keywords]
    module = graph_module(expanded.tree, part.graph, names, convention.spec, part.out_spec)
    return export_graph(module, expanded.example, convention.dynamic[phase])


def graph_module(
    root: nn.Module,
    graph: Graph,
    names: list[str],
    in_spec: pytree.TreeSpec,
    out_spec: pytree.TreeSpec,
) -> GraphModule:
    """A graph module that is called as the student is, over the tensors of `root`.

    Classes of the student's own (dataclasses, named tuples) become dicts and tuples on both sides:
    a file must open where they are not known.
    """
    given, returned = plain_spec(in_spec), plain_spec(out_spec)
    fresh = copied(graph, _PyTreeCodeGen(_PyTreeInfo(names, given, returned)))
    _drop_texts(fresh)
    module = over_tensors_of(root, fresh)
    module._in_spec, module._out_spec = given, returned
    return module


def _drop_texts(graph: Graph) -> None:
    """Return None for a text: torch writes one into a file, and cannot read the file back."""
    for node in graph.nodes:
        if node.op == "output":
            texts_gone = [None if isinstance(value, str) else value for value in node.args[0]]
            node.args = (tuple(texts_gone),)


def export_graph(
    module: GraphModule, example: CallArguments, dynamic: CallArguments
) -> ExportedProgram:
    """Export a graph module with the axes that its first trace kept dynamic.

    `dynamic` is the tree of the example, in plain containers, with {axis: Dim} for tensors.
    """
    shapes: dict[str, Any] = bind_forward(module.forward, *dynamic)
    leaves, spec = pytree.tree_flatten(example)
    args, kwargs = pytree.tree_unflatten(leaves, plain_spec(spec))
    with quiet_libraries():
        return torch.export.export(module, args, kwargs, dynamic_shapes=shapes, strict=False)


def fold_program(
    program: ExportedProgram, fold: Pipeline | GraphPass
) -> tuple[ExportedProgram, PassResult]:
    """A program that passes fold (its compose subgraphs, or its branches), and what was done.

    Args:
        program: It is left as it is.
        fold: `Fold` and `FoldSites`, or `FoldBranches`.
    """
    result = fold(program.module(check_guards=False))
    folded = result.module
    spec, convention_names = program.call_spec, _argument_names(program)
    module = graph_module(folded, folded.graph, convention_names, spec.in_spec, spec.out_spec)
    made = export_graph(module, recorded_inputs(program), recorded_request(program))
    return made, result


def _argument_names(program: ExportedProgram) -> list[str]:
    signature = program.module_call_graph[0].signature
    names = signature.forward_arg_names if signature is not None else None
    if names is not None:
        return list(names)
    positional, keyword = program.call_spec.in_spec.children()
    places = [f"input_{index}" for index in range(positional.num_children)]
    return [*places, *(keyword.context if keyword.num_children else ())]
