"""trace: an nn.Module or an ExportedProgram -> one graph per phase, over the very same parameters.

trace     this file: names, the sentences on what was given up, and programs exported before
ladder    which request torch.export grants to a phase
phases    one export of one phase
probe     the model's own forward, to tell its limits from those of torch.export
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch.utils._pytree as pytree
from torch import nn
from torch.export import ExportedProgram

from opdf_compile.errors import TraceError
from opdf_compile.graph import dynamic_axes as axes_of
from opdf_compile.graph.caches import without_cache
from opdf_compile.graph.containers import register_dataclasses
from opdf_compile.graph.dynamic_axes import AxisNames, Dynamic
from opdf_compile.graph.failures import PART_ALONE
from opdf_compile.graph.ladder import Held, Ladder
from opdf_compile.graph.module_match import bare, is_lazy
from opdf_compile.graph.phases import share
from opdf_compile.graph.recorded import recorded_axes
from opdf_compile.graph.signature import (
    bind_forward,
    normalise_inputs,
    output_names,
    tensor_names,
    tensors_in,
)
from opdf_compile.graph.traced import MODULE_RUNG, PHASES, Phase, Traced

_EXPORTING = threading.RLock()


def trace(
    model: nn.Module | ExportedProgram | Mapping[str, ExportedProgram],
    args: Any = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic: Dynamic = None,
    phases: Sequence[Phase] = PHASES,
) -> Traced:
    """Trace a model into one graph per phase; the model itself is not changed.

    A phase that no graph can hold comes back on the rung "module", with the reason in
    `Traced.notes`: it is still planned, and trained in the hoisted form.

    Args:
        model: A module, a program that torch.export made, or the programs of an archive by name
            ("model" to train, "eval" where it was kept). The wrappers of torch.compile,
            DataParallel and DDP are looked through.
        args: Example inputs: a tuple, one tensor, or one mapping (a batch). Not needed for a
            program.
        kwargs: Keyword example inputs.
        dynamic: Which axes keep a free size. None: the first axis of every tensor. False: none.
            A mapping: for each input one letter (free) or number (fixed) per axis, or a mapping of
            axes to letters as torch.onnx has it; equal letters are one size.
        phases: The phases of a module to trace; an export needs "eval" alone.

    Returns:
        The graphs with the names of inputs, outputs and axes.

    Raises:
        InputError: The example inputs do not fit the model's forward.
        TraceError: The model is no module, or rejects the example inputs.

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
    module = bare(model)
    _refuse_lazy(module)
    inputs = normalise_inputs(args, kwargs)
    bind_forward(module.forward, *inputs)
    registered = register_dataclasses(inputs)
    tensors = tensor_names(module.forward, *inputs)
    wanted = axes_of.wanted_axes(tensors, tensors_in(inputs), dynamic)
    ladder = Ladder(module, inputs, tensors, wanted)
    # An export switches flags of the module and streams of the process: one at a time.
    with _EXPORTING, without_cache(module) as switched:
        held = {phase: ladder.climb(phase) for phase in PHASES if phase in phases}
    programs = {phase: h.program for phase, h in held.items() if h.program is not None}
    shown = programs.get("eval") or programs.get("train")
    shapes = [h.shapes for h in held.values() if h.shapes is not None]
    return Traced(
        source=module,
        programs=programs,
        graphs=share(programs, module),
        args=inputs[0],
        kwargs=inputs[1],
        input_names=tuple(tensors),
        output_names=tuple(output_names(out_spec(shown))) if shown else (),
        axis_names=axes_of.kept_axes(shown, tensors, wanted) if shown else {n: {} for n in tensors},
        dynamic_shapes=shapes[-1] if shapes else None,
        rungs={phase: h.rung for phase, h in held.items()},
        reasons={phase: h.reason for phase, h in held.items() if h.rung == MODULE_RUNG},
        notes=(*registered, *switched, *_notes(held), *_fixed(programs, tensors, wanted)),
    )


def _refuse_lazy(module: nn.Module) -> None:
    lazy = next((n for n, p in module.named_parameters() if is_lazy(p)), None)
    if lazy is not None:
        raise TraceError(
            f"the parameter {lazy!r} of {type(module).__name__} is not initialised yet, wanted a "
            "model that has its shapes; run it once on an example before it is traced"
        )


def _notes(held: Mapping[Phase, Held]) -> list[str]:
    """What did not hold; said once where both phases say the same."""
    said: dict[str, list[Phase]] = {}
    for phase, h in held.items():
        for note in h.notes:
            said.setdefault(note, list(held))
        if h.rung != MODULE_RUNG:
            for rung, reason in h.failures:
                said.setdefault(f"the rung {rung!r} did not hold{{}}: {reason}", []).append(phase)
        else:
            said.setdefault(_no_graph(h), []).append(phase)
    notes = [text.replace("{}", _where(phases, held), 1) for text, phases in said.items()]
    if "eval" in held and held["eval"].rung == MODULE_RUNG:
        notes.append(f"no export without an eval graph: train the model whole, then {PART_ALONE}")
    return notes


def _no_graph(held: Held) -> str:
    return (
        f"no graph can hold the model{{}} ({held.reason}): its matches come from modules, and it "
        "is trained in the hoisted form (opdf.Overparam)"
    )


def _where(phases: Sequence[Phase], held: Mapping[Phase, Any]) -> str:
    return "" if len(phases) == len(held) else f" in {phases[0]}"


def _fixed(
    programs: Mapping[Phase, ExportedProgram], tensors: Sequence[str], wanted: AxisNames
) -> list[str]:
    """Sentences for axes that came out fixed, those of the eval graph last."""
    said: dict[str, list[Phase]] = {}
    for phase, program in programs.items():
        for sentence in axes_of.static_axes(program, tensors, wanted):
            said.setdefault(sentence, []).append(phase)
    return [
        text if len(phases) == len(programs) else f"in {phases[0]}: {text}"
        for text, phases in said.items()
    ]


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
        InputError: `dynamic` asks for other axes than the programs have.
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
    axes, fixed = recorded_axes(evaluation, dynamic)
    return Traced(
        source=model if source is None else source,
        programs=by_phase,
        graphs=share(by_phase, None),
        args=(),
        kwargs={},
        input_names=tuple(axes),
        output_names=tuple(output_names(out_spec(evaluation))),
        axis_names=axes,
        dynamic_shapes=None,
        rungs=dict.fromkeys(PHASES, "given"),
        notes=(*notes, *fixed),
    )


def out_spec(program: ExportedProgram) -> pytree.TreeSpec:
    """The tree of the program's output."""
    spec: pytree.TreeSpec = program.call_spec.out_spec
    return spec
