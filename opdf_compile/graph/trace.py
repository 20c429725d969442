"""nn.Module or ExportedProgram -> one graph per phase, over the very same parameters.

An exported graph cannot be switched between train and eval: dropout's flag and batch norm's mode
are constants in it. The same module is therefore exported twice, once per phase; both graph
modules hold the Parameter and buffer objects of the source, so one set of weights serves both.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

from opdf_compile.errors import TraceError
from opdf_compile.graph import axes as axes_of
from opdf_compile.graph.axes import AxisNames, Dynamic
from opdf_compile.graph.recorded import recorded_axes, recorded_inputs
from opdf_compile.graph.sharing import deep_copy, unify
from opdf_compile.graph.signature import (
    Inputs,
    bind,
    leaf_names,
    normalise_inputs,
    output_names,
)

Phase = Literal["train", "eval"]
PHASES: tuple[Phase, ...] = ("train", "eval")
logger = logging.getLogger("opdf_compile")


@dataclass(frozen=True, eq=False)
class Traced:
    """A model as graphs.

    Attributes:
        source: What was traced.
        programs: The ExportedProgram of each phase.
        graphs: The unlifted graph module of each phase, sharing parameters with each other and,
            where `source` is a module, with it.
        args: Positional example inputs.
        kwargs: Keyword example inputs.
        input_names: Names of the tensor inputs, in the program's order.
        output_names: Names of the outputs, in the eval program's order.
        axis_names: The dynamic axes of each input that torch.export kept, by name.
        dynamic_shapes: The request that torch.export granted, to export again with.
        rung: Which step of the ladder held: "dynamic", "auto", "auto-batch",
            "auto-given" (axes of size 1 are fixed), "static", or "given" for a program.
        notes: Sentences on what was given up on the way.
    """

    source: nn.Module | ExportedProgram
    programs: dict[Phase, ExportedProgram]
    graphs: dict[Phase, GraphModule]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    axis_names: AxisNames
    dynamic_shapes: dict[str, Any] | None
    rung: str
    notes: tuple[str, ...] = ()

    def example(self) -> Inputs:
        """Example inputs whose dynamic axes are at least 2.

        Those that were given, widened; for a program that came without any, tensors of the
        recorded shapes (ones for integers, so that they index any table of two rows or more).
        """
        if not self.args and not self.kwargs:
            return recorded_inputs(self.programs["train"])
        axes = [self.axis_names.get(name, {}) for name in self.input_names]
        return axes_of.widen_tensors((self.args, self.kwargs), axes)


def trace(
    model: nn.Module | ExportedProgram | Mapping[str, ExportedProgram],
    args: Any = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic: Dynamic = None,
) -> Traced:
    """Trace a model into one graph per phase; the model itself is not changed.

    Args:
        model: A module, a program that torch.export made, or the programs of an archive by name
            ("model" to train, "eval" where it was kept).
        args: Example inputs: a tuple, one tensor, or one mapping (a batch). Not needed for a
            program.
        kwargs: Keyword example inputs.
        dynamic: Which axes keep a free size. None: the first axis of every tensor. False: none.
            A mapping: for each input one letter (free) or number (fixed) per axis; equal letters
            are one size.

    Returns:
        The graphs with the names of inputs, outputs and axes.

    Raises:
        InputError: The example inputs do not fit the model's forward.
        TraceError: No rung of the ladder holds the model.

    Example:
        >>> traced = trace(torch.nn.Linear(4, 2), (torch.randn(3, 4),))
        >>> traced.input_names, traced.rung
        (('input',), 'dynamic')
    """
    if isinstance(model, ExportedProgram):
        return trace_programs({"model": model}, model, dynamic=dynamic)
    if isinstance(model, Mapping):
        return trace_programs(model, dynamic=dynamic)
    if not isinstance(model, nn.Module):
        raise TraceError(
            f"the model is a {type(model).__name__}, wanted a torch.nn.Module or a "
            "torch.export.ExportedProgram; pass the module itself"
        )
    inputs = normalise_inputs(args, kwargs)
    bind(model.forward, *inputs)
    leaves = pytree.tree_leaves(inputs)
    names = leaf_names(model.forward, *inputs)
    wanted = axes_of.wanted_axes(names, leaves, dynamic)
    granted = _climb(model, inputs, names, wanted)
    tensors = [n for n, leaf in zip(names, leaves, strict=True) if isinstance(leaf, Tensor)]
    fixed = axes_of.static_axes(granted.programs["eval"], tensors, wanted)
    return Traced(
        source=model,
        programs=granted.programs,
        graphs=share(granted.programs, model),
        args=inputs[0],
        kwargs=inputs[1],
        input_names=tuple(tensors),
        output_names=tuple(output_names(out_spec(granted.programs["eval"]))),
        axis_names=axes_of.kept_axes(granted.programs["eval"], tensors, wanted),
        dynamic_shapes=granted.shapes,
        rung=granted.rung,
        notes=(*granted.notes, *fixed),
    )


def trace_programs(
    programs: Mapping[str, ExportedProgram],
    source: nn.Module | ExportedProgram | None = None,
    *,
    dynamic: Dynamic = None,
) -> Traced:
    """Take programs that are there already: "model" (trained), and "eval" where it was kept.

    Args:
        programs: ExportedPrograms by name.
        source: What the caller came with; the "model" program if None.
        dynamic: Names for the axes that the programs keep free, by input.

    Raises:
        TraceError: There is no program "model".
    """
    if "model" not in programs:
        raise TraceError(
            f"the archive holds the programs {', '.join(programs) or 'none'}, wanted one called "
            "'model'; write it with torch.export.save or opdf-compile expand"
        )
    model = programs["model"]
    evaluation = programs.get("eval", model)
    notes = () if "eval" in programs else ("one program: its graph serves train and eval alike",)
    by_phase: dict[Phase, ExportedProgram] = {"train": model, "eval": evaluation}
    names, axes = recorded_axes(evaluation, dynamic if isinstance(dynamic, Mapping) else {})
    return Traced(
        source=model if source is None else source,
        programs=by_phase,
        graphs=share(by_phase, None),
        args=(),
        kwargs={},
        input_names=tuple(names),
        output_names=tuple(output_names(out_spec(evaluation))),
        axis_names=axes,
        dynamic_shapes=None,
        rung="given",
        notes=notes,
    )


def out_spec(program: ExportedProgram) -> pytree.TreeSpec:
    """The tree of the program's output."""
    spec: pytree.TreeSpec = program.call_spec.out_spec
    return spec


@dataclass(frozen=True)
class _Granted:
    rung: str
    notes: tuple[str, ...]
    programs: dict[Phase, ExportedProgram]
    shapes: dict[str, Any] | None


def _climb(model: nn.Module, inputs: Inputs, names: list[str], wanted: AxisNames) -> _Granted:
    """Try the rungs from the strictest request down; say what was given up."""
    notes: list[str] = []
    last: Exception | None = None
    for rung, axes, hint in _rungs(wanted, axes_of.not_one(inputs, names, wanted)):
        # Only what this rung keeps free is widened: a model may take no batch but the example's.
        wide = axes_of.widen(inputs, names, axes)
        shapes = bind(model.forward, *axes_of.request(wide, names, axes, hint)) if axes else None
        try:
            programs = {phase: _export(model, phase, wide, shapes) for phase in PHASES}
        except Exception as error:  # torch.export raises whatever the model's own code raises.
            last = error
            notes.append(f"the rung {rung!r} did not hold: {first_line(error)}")
            logger.info("trace: %s", notes[-1])
            continue
        return _Granted(rung, tuple(notes), programs, shapes)
    _probe(model, inputs, names)
    raise TraceError(
        f"torch.export cannot hold {type(model).__name__} as a graph ({first_line(last)}), "
        f"wanted {_remedy(str(last))} or plan from the module itself (opdf.plan(module))"
    ) from last


def _remedy(message: str) -> str:
    if "not a known type" in message:
        return (
            "inputs and outputs made of tensors, tuples, lists and dicts; register the class with "
            "torch.export.register_dataclass"
        )
    return "a forward without branches on tensor values; mark the branch with torch.cond"


def _rungs(wanted: AxisNames, given: AxisNames) -> Iterator[tuple[str, AxisNames, Any]]:
    if any(wanted.values()):
        for name, hint in axes_of.AXIS_HINTS:
            yield name, wanted, hint
        batch = {name: {0: axes[0]} if 0 in axes else {} for name, axes in wanted.items()}
        if batch != wanted:
            yield "auto-batch", batch, axes_of.AXIS_HINTS[-1][1]
        if given != wanted and any(given.values()):
            yield "auto-given", given, axes_of.AXIS_HINTS[-1][1]
    yield "static", {}, None


def _probe(model: nn.Module, inputs: Inputs, names: list[str]) -> None:
    """Tell example inputs that the model itself rejects from a limit of torch.export."""
    try:
        with torch.no_grad(), phase_flags(model, "eval"):
            deep_copy(model)(*inputs[0], **inputs[1])
    except Exception as error:  # Whatever the user's forward raises on the user's own inputs.
        shapes = ", ".join(
            f"{name}={'x'.join(map(str, leaf.shape))}:{str(leaf.dtype).removeprefix('torch.')}"
            for name, leaf in zip(names, pytree.tree_leaves(inputs), strict=True)
            if isinstance(leaf, Tensor)
        )
        raise TraceError(
            f"{type(model).__name__} rejects the example inputs {shapes or 'given'} "
            f"({type(error).__name__}: {first_line(error)}), wanted inputs that its forward "
            "accepts; correct their shapes and dtypes"
        ) from error


def _export(
    model: nn.Module, phase: Phase, inputs: Inputs, shapes: dict[str, Any] | None
) -> ExportedProgram:
    with phase_flags(model, phase), _quiet():
        return torch.export.export(model, inputs[0], inputs[1], dynamic_shapes=shapes, strict=False)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's own reports of a failed rung off the terminal; `Traced.notes` says why.

    torch prints the half-made graph, which would end up in the JSON of a command.
    """
    chatter = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level = chatter.level
    chatter.setLevel(logging.ERROR)
    said = io.StringIO()
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        chatter.setLevel(level)
        if said.getvalue():
            logger.debug("trace: torch.export and the model printed: %s", said.getvalue())


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
        unify([graphs[phase] for phase in PHASES])
    return graphs


def first_line(error: BaseException | None) -> str:
    """The first line of an error's message that says something, at most 200 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200].rstrip(".")
