"""One export of one phase: flags set and put back, torch's own chatter kept off the terminal.

An exported graph cannot be switched between train and eval: dropout's flag and batch norm's mode
are constants in it. A module is therefore exported once per phase; the graphs hold the Parameter
and buffer objects of the source, so one set of weights serves both.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

from opdf_compile.graph.as_before import as_before
from opdf_compile.graph.quiet import quiet_libraries
from opdf_compile.graph.sharing import unify
from opdf_compile.graph.signature import CallArguments
from opdf_compile.graph.traced import PHASES, Phase

_LOG = logging.getLogger("opdf_compile")


def export_phase(
    model: nn.Module, phase: Phase, inputs: CallArguments, shapes: dict[str, Any] | None
) -> ExportedProgram:
    """Export a module in one phase; raises whatever torch.export or the model's code raises.

    The module is as before afterwards, so the next phase, or the next rung, starts from it too.
    """
    with as_before(model), phase_flags(model, phase), quiet():
        return torch.export.export(model, inputs[0], inputs[1], dynamic_shapes=shapes, strict=False)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep torch's own reports of a failed rung off the terminal; `Traced.notes` says why.

    torch prints the half-made graph, which would end up in the JSON of a command.
    """
    said = io.StringIO()
    try:
        with (
            quiet_libraries(),
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
        ):
            yield
    finally:
        if said.getvalue():
            _LOG.debug("trace: torch.export and the model printed: %s", said.getvalue())


@contextlib.contextmanager
def phase_flags(model: nn.Module, phase: Phase) -> Iterator[None]:
    """Put a module into a phase and every submodule's flag back afterwards.

    A module that is in training already keeps its flags in the train phase: a submodule that the
    caller had put in eval (a frozen BatchNorm) stays there, which a call of train() would undo.
    """
    flags = [(module, module.training) for module in model.modules()]
    try:
        if phase == "eval" or not model.training:
            model.train(phase == "train")
        yield
    finally:
        for module, training in flags:
            module.training = training


def share(
    programs: Mapping[Phase, ExportedProgram], model: nn.Module | None
) -> dict[Phase, GraphModule]:
    """The unlifted graph of each phase, all over one set of Parameter and buffer objects.

    Programs made from one module share its objects already. Programs read from a file do not, and
    hold a tied weight as two Parameters on one storage: here equal names become one object, and
    so do Parameters that view the same memory in the same way.
    """
    graphs = {phase: program.module(check_guards=False) for phase, program in programs.items()}
    if model is None:
        unify([graphs[phase] for phase in PHASES if phase in graphs])
    return graphs
