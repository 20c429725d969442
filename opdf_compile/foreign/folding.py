"""fold_model: a model with training-time branches -> the same function without them, proven.

by graph    every region of linear branches becomes one layer (`passes.FoldBranches`)
by method   the class folds itself (`methods`)
auto        by method where the model has one that holds, else by graph
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn
from torch.export import ExportedProgram

from opdf_compile.artefacts import FoldRecord, fold_record
from opdf_compile.errors import ArtefactError, FoldError, InputError, TraceError
from opdf_compile.foreign.methods import MethodCall, deployed, has_methods
from opdf_compile.foreign.proof import does_not_run, require_same_function
from opdf_compile.graph import Dynamic, Traced, normalise_inputs
from opdf_compile.io import (
    Export,
    Exportable,
    Original,
    as_array,
    as_traced,
    build_export,
    write,
    write_programs,
    write_student,
)
from opdf_compile.passes import BranchFold, BranchResult, FoldBranches, RegionRefusal
from opdf_compile.training import fold_program

By = Literal["auto", "graph", "method"]
WAYS = ("auto", "graph", "method")


@dataclass(frozen=True, eq=False)
class FoldedModel:
    """A model without its branches.

    Attributes:
        module: By method, the class's own deployed module; by graph, None.
        traced: The folded model as a graph of its eval phase.
        original: The model as it was, traced alike, and its check data.
        by: "graph" or "method".
        folds: By graph, each region that was folded.
        calls: By method, each method that was called.
        refused: Branches that meet and stay, with the reason.
        notes: What a user should know, in sentences.
    """

    module: nn.Module | None
    traced: Traced
    original: Original
    by: Literal["graph", "method"]
    folds: tuple[BranchFold, ...] = ()
    calls: tuple[MethodCall, ...] = ()
    refused: tuple[RegionRefusal, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def unfolded(self) -> Traced:
        """The model as it was."""
        return self.original.traced

    @property
    def program(self) -> ExportedProgram:
        """The folded eval graph."""
        return self.traced.programs["eval"]

    @property
    def state(self) -> dict[str, Tensor]:
        """Tensors of the folded model; by method under the keys of the deployed class."""
        module = self.module
        tensors = self.program.state_dict if module is None else module.state_dict()
        return {name: tensor.detach() for name, tensor in tensors.items()}

    @property
    def operations(self) -> tuple[int, int]:
        """Operations of the eval graph before and after."""
        before, after = (_operations(t.programs["eval"]) for t in (self.unfolded, self.traced))
        return before, after

    @property
    def record(self) -> FoldRecord:
        """What an export of it must no longer hold."""
        before, after = (
            {name: as_array(tensor) for name, tensor in t.programs["eval"].state_dict.items()}
            for t in (self.unfolded, self.traced)
        )
        return fold_record(self.by, before, after)

    def export(self) -> Export:
        """The folded model as ONNX in memory; its check data is that of the unfolded model.

        Raises:
            ExportError: It has no ONNX form.
        """
        made = build_export(self.traced, truth=self.original)
        note = f"the truth is that of the model before its branches were folded (by {self.by})"
        check = dataclasses.replace(made.check, notes=(*made.check.notes, note), folded=self.record)
        return dataclasses.replace(made, check=check)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the folded model.

        Args:
            path: `.pt2` (the eval graph), `.safetensors` (the tensors) or `.onnx`, which gets the
                check data of the unfolded model beside it.

        Raises:
            ArtefactError: The suffix is another one, or the file cannot be written.
            ExportError: It has no ONNX form.
        """
        target = Path(path)
        if target.suffix == ".onnx":
            return write(target, self.export(), None)
        if target.suffix == ".safetensors":
            write_student(target, self.state)
        elif target.suffix == ".pt2":
            write_programs(target, {"model": self.program}, {"opdf.json": self._axes()})
        else:
            raise ArtefactError(
                f"{target} has the suffix {target.suffix or 'none'!r}, wanted .pt2, .safetensors "
                "or .onnx; choose one of them"
            )
        return target

    def _axes(self) -> str:
        named = self.traced.axis_names
        axes = {n: {str(a): letter for a, letter in free.items()} for n, free in named.items()}
        return json.dumps({"schema": "opdf-program/1", "axes": axes})


def fold_model(
    model: Exportable,
    args: Any = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic: Dynamic = None,
    by: By = "auto",
    norms: bool = False,
) -> FoldedModel:
    """Fold the training-time branches that a model brought itself, and prove that nothing changed.

    Args:
        model: A module (in whatever phase; it is folded as in eval and left as it is), an
            ExportedProgram of the eval phase, the programs of an archive, or a Traced.
        args: Example inputs: a tuple, one tensor or one mapping. Not needed for traced models.
        kwargs: Keyword example inputs.
        dynamic: Which axes keep a free size, as in `trace`.
        by: "graph": every region of an eval graph that is linear in one input becomes one layer.
            "method": the class's own `fuse`, `reparameterize`, `switch_to_deploy` or
            `merge_and_unload`. "auto": the method where there is one that holds, else the graph.
        norms: By graph, fold a batch norm behind a lone layer too.

    Returns:
        The folded model, with what was folded and what was left.

    Raises:
        FoldError: There is nothing to fold, a method did nothing or raised, or the folded model
            computes something else than the model did.
        InputError: An option has no meaning, or the example inputs do not fit.
        TraceError: torch.export cannot hold the model.

    Example:
        >>> folded = opdf.fold_model(student, (x,))
        >>> folded.save("student.onnx")
    """
    if by not in WAYS:
        raise InputError(f"by is {by!r}; give {', '.join(WAYS)}")
    original = Original(as_traced(model, args, kwargs, dynamic, None))
    own = isinstance(model, nn.Module) and has_methods(model)
    if by == "graph" or (by == "auto" and not own):
        return _by_graph(original, norms)
    if not isinstance(model, nn.Module):
        raise FoldError(
            "by method was asked for and the model is a graph, wanted a module of a class that "
            "folds itself; fold it by graph (--by graph)"
        )
    inputs = normalise_inputs(args, kwargs)
    try:
        return _by_method(model, original, inputs, dynamic)
    except FoldError as error:
        if by == "method":
            raise
        return _by_graph_instead(original, norms, f"not by method: {error}")


def _by_graph(original: Original, norms: bool) -> FoldedModel:
    unfolded = original.traced
    program, result = fold_program(unfolded.programs["eval"], FoldBranches(norms))
    folds = tuple(change for change in result.changes if isinstance(change, BranchFold))
    refused = result.refused if isinstance(result, BranchResult) else ()
    if not folds:
        raise FoldError(_nothing(refused, norms))
    traced = dataclasses.replace(
        unfolded,
        source=program,
        programs={"train": program, "eval": program},
        graphs={"eval": program.module(check_guards=False)},
    )
    require_same_function(traced, original, "folding by graph")
    return FoldedModel(None, traced, original, "graph", folds, refused=refused)


def _by_graph_instead(original: Original, norms: bool, note: str) -> FoldedModel:
    """By graph after a method that did not hold; a refusal names both reasons."""
    try:
        found = _by_graph(original, norms)
    except FoldError as error:
        raise FoldError(f"{error}; {note}") from error
    return dataclasses.replace(found, notes=(*found.notes, note))


def _nothing(refused: Sequence[RegionRefusal], norms: bool) -> str:
    seen = f"; {refused[0]}" if refused else ""
    more = "" if norms else ", or fold lone batch norms too (--norms)"
    return (
        "there is nothing to fold: the model holds no cores, and no branches of one value meet in "
        f"its eval graph{seen}, wanted parallel or chained linear layers; use it as it is{more}"
    )


def _by_method(model: nn.Module, original: Original, inputs: Any, dynamic: Dynamic) -> FoldedModel:
    folded, calls = deployed(model)
    names = ", ".join(dict.fromkeys(call.method for call in calls))
    how = f"{names} of {type(model).__name__}"
    try:
        traced = as_traced(folded, inputs[0], inputs[1], dynamic, None)
    except (InputError, TraceError) as error:  # Of a layer that came out in another dtype, say.
        raise does_not_run(how, error) from error
    require_same_function(traced, original, how)
    return FoldedModel(folded, traced, original, "method", calls=calls)


def _operations(program: ExportedProgram) -> int:
    return sum(node.op == "call_function" for node in program.graph.nodes)
