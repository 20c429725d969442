"""What an ONNX file cannot hold, or must not ship, refused before it is made."""

from __future__ import annotations

import re

from torch import nn
from torch.export import ExportedProgram

from opdf_compile.errors import ExportError, TraceError
from opdf_compile.graph import PART_ALONE, Traced, remedy_of
from opdf_compile.passes import branch_key

_CORE = re.compile(r"(.+)_cores\.\d+")


def refuse_expanded(model: nn.Module) -> None:
    """Refuse a module that still trains as something else than the student.

    Raises:
        ExportError: Its weights are cores, or it has branches; with the call that folds it.
    """
    from opdf_compile.training import Expanded, has_branches

    if isinstance(model, Expanded):
        raise ExportError(
            "the model is an Expanded whose weights are still cores, wanted the student itself; "
            "fold it first: opdf.fold(model)"
        )
    if has_branches(model):
        raise ExportError(
            "the model has branches beside its convolutions, wanted the student itself; fold it "
            "first: opdf.fold(model)"
        )


def require_graph(traced: Traced) -> None:
    """An ONNX file is a graph, so the eval phase needs one; the train phase does not matter.

    Raises:
        TraceError: No graph can hold the eval phase; with the reason.
    """
    if "eval" in traced.programs:
        return
    reason = traced.reasons.get("eval", "its eval phase was not traced")
    raise TraceError(
        f"{type(traced.source).__name__} cannot be exported: no graph can hold its eval phase "
        f"({reason}), wanted {remedy_of(reason)}; or {PART_ALONE}"
    )


def refuse_cores(program: ExportedProgram) -> None:
    """An expanded program would run, and ship the whole over-parameterised network.

    Raises:
        ExportError: It holds cores or branches.
    """
    for key in program.state_dict:
        beside = branch_key(key, program.state_dict)
        if beside:
            raise ExportError(
                f"the program holds branches ({key}) beside the weight {beside[0]}, wanted the "
                "student itself; fold it first: opdf-compile fold"
            )
        found = _CORE.fullmatch(key)
        if found and found[1] not in program.state_dict:
            raise ExportError(
                f"the program holds cores ({key}) in place of the weight {found[1]}, wanted the "
                "student itself; fold it first: opdf-compile fold"
            )


def refuse_training_graph(program: ExportedProgram) -> None:
    """A program's phase is baked in; an active dropout would ship with it.

    Raises:
        ExportError: It is that of training.
    """
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        name = str(node.target)
        dropout = name == "aten.dropout.default" and len(node.args) > 2 and node.args[2] is True
        norm = name == "aten.batch_norm.default" and node.args[5] is True
        if dropout or norm:
            raise ExportError(
                f"the program is a training graph (node {node.name} runs {name} in training), "
                "wanted an eval graph; export the module after model.eval(), with "
                "training=self.training in every F.dropout, or give the archive with both programs"
            )
