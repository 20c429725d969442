"""A model of any accepted form -> an ONNX model in memory with its check data."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from opdf_compile.artefacts import CheckData, Drop
from opdf_compile.errors import ExportError
from opdf_compile.graph import (
    AxisNames,
    Dynamic,
    Traced,
    normalise_inputs,
)
from opdf_compile.io.dtypes import dtype_name
from opdf_compile.io.evidence.evaluating import gather_check_data
from opdf_compile.io.evidence.free_sizes import InputAxis
from opdf_compile.io.evidence.given_rows import Samples, given_rows
from opdf_compile.io.evidence.half_range import fit_numbers, too_large
from opdf_compile.io.export.axis_trials import try_free_axes
from opdf_compile.io.export.calibration import Feed, batches_of
from opdf_compile.io.export.eval_phase import (
    Exportable,
    as_traced,
    exported_again,
    parse_dtype,
    tensors_of,
    trace_eval,
)
from opdf_compile.io.export.examples import samples_of
from opdf_compile.io.export.own_check import Original
from opdf_compile.io.export.pte import require_one_file
from opdf_compile.io.export.refusals import refuse_training_graph, require_graph
from opdf_compile.io.export.save import weight_bytes
from opdf_compile.io.export.student_export import file_and_check, most_numbers, onnx_student_of
from opdf_compile.io.export.translate import export_program

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir


@dataclass(frozen=True, eq=False)
class Export:
    """An ONNX model that is not on disk yet.

    Attributes:
        model: The model; its weights are views of the source's own tensors. The message of the file
            itself for an ONNX student.
        check: Its check data, without the hash of the file.
        notes: Sentences on what was given up while it was traced.
        fixed: (input, axis) of the axes that were asked to be free and that ONNX does not bear,
            each with a sentence.
        batches: What int8 is calibrated with, by the file's input names; empty without int8.
        drops: What int8 costs each output on the check data; empty without int8.
        lowers: What is lowered to ExecuTorch and written beside the file; None without that.
    """

    model: ir.Model | onnx.ModelProto
    check: CheckData
    notes: tuple[str, ...] = ()
    fixed: Mapping[InputAxis, str] = field(default_factory=dict)
    batches: Sequence[Feed] = ()
    drops: tuple[Drop, ...] = ()
    lowers: Traced | None = None


def build_export(
    model: Exportable,
    args: Any = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic: Dynamic = None,
    opset: int | None = None,
    dtype: str | torch.dtype | None = None,
    samples: Samples | None = None,
    fixed: Mapping[InputAxis, str] | None = None,
    truth: Original | None = None,
    calibration: Samples | None = None,
    executorch: bool = False,
) -> Export:
    """Trace, translate, try the free axes, gather evidence; the source stays as it is.

    Args:
        model: A module, an ExportedProgram of the eval phase, the programs of an archive by name
            ("model", "eval"), or what `trace` returned.
        args: Example inputs: a tuple, one tensor or one mapping. Not needed for traced models.
        kwargs: Keyword example inputs.
        dynamic: Which axes keep a free size, as in `trace`. Traced models have theirs.
        opset: The ONNX opset, None for the exporter's recommendation.
        dtype: "fp32", "fp16" or "bf16" converts a copy; None keeps the model's own dtypes.
        samples: Rows of the user's own, as in `export_onnx`.
        fixed: (input, axis) of axes that are not to be free, whatever `dynamic` says, each with a
            sentence.
        truth: The same function in another form, traced alike: the model before its branches were
            folded. The check data is then its own, as it is where all free axes stay free.
        calibration: Rows of the user's data, of which the check data then takes its samples; the
            model is not quantised here.
        executorch: Lower it to ExecuTorch, too, when it is written.

    Raises:
        ExportError: The model is still expanded, is a training graph, or has no ONNX form; an ONNX
            student was to be lowered.
        TraceError: torch.export cannot hold the model.
        InputError: The example inputs or the samples do not fit.
    """
    wanted = parse_dtype(dtype)
    student = onnx_student_of(model)
    if student is not None:
        if executorch:
            raise ExportError(
                f"{student.source.name} is an ONNX student, and ExecuTorch lowers a PyTorch model; "
                "leave executorch out, or export the PyTorch model"
            )
        given = normalise_inputs(args, kwargs)
        if isinstance(model, Traced) and not any(given):
            given = (model.args, model.kwargs)
        made, check, batches = file_and_check(
            student, given, dynamic, opset, dtype, samples=samples, calibration=calibration
        )
        return Export(made, check, batches=batches)
    originals = too_large(tensors_of(model), wanted)
    traced = as_traced(model, args, kwargs, dynamic, wanted)
    if not isinstance(traced.source, nn.Module):
        refuse_training_graph(traced.programs["eval"])
    translated, traced, found, note = _with_true_axes(traced, opset, dict(fixed or {}))
    if executorch:
        require_one_file(weight_bytes(translated))
    outputs = [str(value.name) for value in translated.graph.outputs]
    told = traced if truth is None else _fix(truth.traced, found)
    program = told.programs["eval"]
    batches = batches_of(traced, calibration, _names(traced))
    example, *further = samples_of(traced, batches)
    check = _as_told(truth, told, traced, outputs) or gather_check_data(
        program,
        example,
        axis_names=_names(traced),
        output_names=outputs,
        dtype=dtype_name(wanted or most_numbers(program.state_dict.values())),
        rows=given_rows(samples, (traced.args, traced.kwargs), _names(traced)),
        further=further,
        originals=originals,
    )
    notes = (*traced.notes, *filter(None, [note]))
    return Export(translated, check, notes, found, batches, lowers=traced if executorch else None)


def _as_told(
    truth: Original | None, told: Traced, traced: Traced, outputs: list[str]
) -> CheckData | None:
    """The check data of the other form, where its sizes and names are those of the file."""
    if truth is None or told is not truth.traced or _names(told) != _names(traced):
        return None
    return truth.check if list(truth.check.output_names) == outputs else None


def _with_true_axes(
    traced: Traced, opset: int | None, fixed: dict[InputAxis, str]
) -> tuple[ir.Model, Traced, dict[InputAxis, str], str]:
    """The translated model, whose free axes were seen to be free; the others are fixed."""
    traced = _fix(traced, fixed)
    while True:
        translated = export_program(
            fit_numbers(traced.programs["eval"])[0],
            input_names=traced.input_names,
            output_names=traced.output_names,
            axis_names=traced.axis_names,
            opset=opset,
        )
        program, example = traced.programs["eval"], (traced.args, traced.kwargs)
        trials = try_free_axes(translated, program, example, _names(traced), traced.source)
        if not trials.broken:
            return translated, traced, fixed, trials.note
        # An axis that is fixed may change which others are free, so all are tried again; the loop
        # ends because each round fixes one at least.
        traced, fixed = _fix(traced, trials.broken), {**fixed, **trials.broken}


def _names(traced: Traced) -> AxisNames:
    """Every tensor input in order with its free axes, those without any included."""
    return {name: traced.axis_names.get(name, {}) for name in traced.input_names}


def _fix(traced: Traced, places: Collection[InputAxis]) -> Traced:
    """Export again without these free axes; its other axes stay as they are."""
    names = _names(traced)
    kept = {
        name: {axis: letter for axis, letter in axes.items() if (name, axis) not in places}
        for name, axes in names.items()
    }
    if kept == names:
        return traced
    if not isinstance(traced.source, nn.Module):
        return exported_again(traced, {}, kept)
    leaves = pytree.tree_leaves((traced.args, traced.kwargs))
    shapes = zip(kept, (leaf.shape for leaf in leaves if isinstance(leaf, Tensor)), strict=True)
    dynamic = {
        name: [kept[name].get(axis, int(size)) for axis, size in enumerate(shape)]
        for name, shape in shapes
    }
    again = trace_eval(traced.source, (traced.args, traced.kwargs), dynamic)
    require_graph(again)
    return again
