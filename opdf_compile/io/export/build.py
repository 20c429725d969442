"""A model of any accepted form -> an ONNX model in memory with its check data."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from opdf_compile.artefacts import CheckData
from opdf_compile.errors import ExportError, TraceError, first_line
from opdf_compile.graph import (
    PART_ALONE,
    AxisNames,
    CallArguments,
    Dynamic,
    Traced,
    bind_forward,
    deep_copy,
    kept_axes,
    normalise_inputs,
    quiet_libraries,
    recorded_inputs,
    remedy_of,
    request_axes,
    trace,
    widen_axes,
)
from opdf_compile.io.dtypes import dtype_name
from opdf_compile.io.evidence.evaluating import gather_check_data
from opdf_compile.io.evidence.free_sizes import InputAxis
from opdf_compile.io.evidence.half_range import fit_numbers, narrowed, too_large
from opdf_compile.io.evidence.retype import cast_leaf, retyped
from opdf_compile.io.evidence.truth import graph_of
from opdf_compile.io.export.axis_trials import try_free_axes
from opdf_compile.io.export.experts import batched_experts
from opdf_compile.io.export.own_check import Original
from opdf_compile.io.export.student_export import file_and_check, most_numbers, onnx_student_of
from opdf_compile.io.export.translate import export_program
from opdf_compile.passes import branch_key

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

EXPORT_DTYPES: Mapping[str, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
# What `build_export` accepts.
Exportable = nn.Module | ExportedProgram | Mapping[str, ExportedProgram] | Traced
_CORE = re.compile(r"(.+)_cores\.\d+")
_FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})


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
    """

    model: ir.Model | onnx.ModelProto
    check: CheckData
    notes: tuple[str, ...] = ()
    fixed: Mapping[InputAxis, str] = field(default_factory=dict)


def build_export(
    model: Exportable,
    args: Any = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic: Dynamic = None,
    opset: int | None = None,
    dtype: str | torch.dtype | None = None,
    fixed: Mapping[InputAxis, str] | None = None,
    truth: Original | None = None,
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
        fixed: (input, axis) of axes that are not to be free, whatever `dynamic` says, each with a
            sentence.
        truth: The same function in another form, traced alike: the model before its branches were
            folded. The check data is then its own, as it is where all free axes stay free.

    Raises:
        ExportError: The model is still expanded, is a training graph, or has no ONNX form.
        TraceError: torch.export cannot hold the model.
        InputError: The example inputs do not fit.
    """
    wanted = _parse_dtype(dtype)
    student = onnx_student_of(model)
    if student is not None:
        given = normalise_inputs(args, kwargs)
        if isinstance(model, Traced) and not any(given):
            given = (model.args, model.kwargs)
        return Export(*file_and_check(student, given, dynamic, opset, dtype))
    originals = too_large(tensors_of(model), wanted)
    traced = as_traced(model, args, kwargs, dynamic, wanted)
    if not isinstance(traced.source, nn.Module):
        _refuse_training_graph(traced.programs["eval"])
    translated, traced, found, note = _with_true_axes(traced, opset, dict(fixed or {}))
    outputs = [str(value.name) for value in translated.graph.outputs]
    told = traced if truth is None else _fix(truth.traced, found)
    program = told.programs["eval"]
    check = _as_told(truth, told, traced, outputs) or gather_check_data(
        program,
        (traced.args, traced.kwargs),
        axis_names=_names(traced),
        output_names=outputs,
        dtype=dtype_name(wanted or most_numbers(program.state_dict.values())),
        originals=originals,
    )
    return Export(translated, check, (*traced.notes, *filter(None, [note])), found)


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
        return _exported_again(traced, {}, kept)
    leaves = pytree.tree_leaves((traced.args, traced.kwargs))
    shapes = zip(kept, (leaf.shape for leaf in leaves if isinstance(leaf, Tensor)), strict=True)
    dynamic = {
        name: [kept[name].get(axis, int(size)) for axis, size in enumerate(shape)]
        for name, shape in shapes
    }
    again = _trace_eval(traced.source, (traced.args, traced.kwargs), dynamic)
    _require_graph(again)
    return again


def tensors_of(model: Any) -> dict[str, Tensor]:
    """Parameters, buffers and constants of a model of any accepted form, by name."""
    if isinstance(model, nn.Module):
        return {**dict(model.named_parameters()), **dict(model.named_buffers())}
    if isinstance(model, Traced):
        model = model.programs.get("eval")
    if isinstance(model, Mapping):
        model = model.get("eval") or model.get("model")
    if not isinstance(model, ExportedProgram):
        return {}
    constants = {k: v for k, v in model.constants.items() if isinstance(v, Tensor)}
    return {**model.state_dict, **constants}


def _parse_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """Read the `dtype` option.

    Raises:
        ExportError: It is none of fp32, fp16, bf16.
    """
    if dtype is None:
        return None
    found = EXPORT_DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found not in EXPORT_DTYPES.values():
        raise ExportError(f"the dtype is {dtype!s}, wanted fp32, fp16 or bf16; choose one of them")
    return found


def as_traced(
    model: Any, args: Any, kwargs: Mapping[str, Any] | None, dynamic: Dynamic, wanted: Any
) -> Traced:
    """Trace the eval phase of a model of any accepted form, in the dtype wanted (or its own).

    Raises:
        ExportError: The model is still expanded, or cannot be run in that dtype.
        TraceError: torch.export cannot hold the model.
        InputError: The example inputs do not fit.
    """
    if isinstance(model, nn.Module):
        _refuse_expanded(model)
        traced = _trace_module(model, normalise_inputs(args, kwargs), dynamic, wanted)
        _require_graph(traced)
        return traced
    if isinstance(model, ExportedProgram | Mapping):
        model = trace(model, dynamic=dynamic)
    if not isinstance(model, Traced):
        raise ExportError(
            f"the model is a {type(model).__name__}, wanted a torch.nn.Module, an ExportedProgram "
            "or a Traced; pass the module itself"
        )
    _require_graph(model)
    _refuse_cores(model.programs["eval"])
    return _retrace(_with_example(model, args, kwargs), wanted)


def _refuse_expanded(model: nn.Module) -> None:
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


def _require_graph(traced: Traced) -> None:
    """An ONNX file is a graph, so the eval phase needs one; the train phase does not matter."""
    if "eval" in traced.programs:
        return
    reason = traced.reasons.get("eval", "its eval phase was not traced")
    raise TraceError(
        f"{type(traced.source).__name__} cannot be exported: no graph can hold its eval phase "
        f"({reason}), wanted {remedy_of(reason)}; or {PART_ALONE}"
    )


def _refuse_cores(program: ExportedProgram) -> None:
    """An expanded program would run, and ship the whole over-parameterised network."""
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


def _trace_module(
    model: nn.Module, inputs: CallArguments, dynamic: Dynamic, wanted: torch.dtype | None
) -> Traced:
    if wanted is None or not _changes(model.state_dict().values(), wanted):
        return _trace_eval(model, inputs, dynamic)
    mapping = _to(wanted)
    converted = deep_copy(model).to(wanted)
    _narrow(converted, model, wanted)
    converted_inputs = pytree.tree_map(lambda leaf: cast_leaf(leaf, mapping), inputs)
    try:
        return _trace_eval(converted, converted_inputs, dynamic)
    except TraceError as error:
        raise ExportError(
            f"the model does not run in {dtype_name(wanted)} ({error}), wanted a "
            "forward without hard-coded dtypes; leave --dtype out"
        ) from error


def _narrow(converted: nn.Module, model: nn.Module, wanted: torch.dtype) -> None:
    """Bring finite numbers that became infinite back to the largest that the dtype has."""
    made = tensors_of(converted)
    with torch.no_grad():
        for name, tensor in too_large(tensors_of(model), wanted).items():
            made[name].copy_(narrowed(tensor, wanted))


def _trace_eval(model: nn.Module, inputs: CallArguments, dynamic: Dynamic) -> Traced:
    """An ONNX file needs no train graph, which may be one that torch.export cannot hold."""
    with batched_experts(model):
        return trace(model, *inputs, dynamic=dynamic, phases=("eval",))


def _with_example(traced: Traced, args: Any, kwargs: Mapping[str, Any] | None) -> Traced:
    """A traced model with example inputs: the caller's, its own, or those of the program."""
    given = normalise_inputs(args, kwargs)
    if any(given):
        return dataclasses.replace(traced, args=given[0], kwargs=given[1])
    if traced.args or traced.kwargs:
        return traced
    stored = recorded_inputs(traced.programs["eval"])
    return dataclasses.replace(traced, args=stored[0], kwargs=stored[1])


def _retrace(traced: Traced, wanted: torch.dtype | None) -> Traced:
    """Change the dtype of a program that has no module behind it."""
    program = traced.programs["eval"]
    if wanted is None or not _changes(program.state_dict.values(), wanted):
        return traced
    try:
        return _exported_again(traced, _to(wanted), traced.axis_names)
    except Exception as error:  # The graph's own operations raise whatever they like.
        raise ExportError(
            f"the program does not run in {dtype_name(wanted)} "
            f"({first_line(error)}), wanted a graph without mixed dtypes; export the module "
            "itself with a dtype"
        ) from error


def _exported_again(
    traced: Traced, mapping: Mapping[torch.dtype, torch.dtype], names: AxisNames
) -> Traced:
    """A program exported from its own graph, with other dtypes or fewer free axes."""
    module = retyped(graph_of(traced.programs["eval"]), mapping)
    inputs: CallArguments = pytree.tree_map(
        lambda leaf: cast_leaf(leaf, mapping), (traced.args, traced.kwargs)
    )
    wide = widen_axes(inputs, traced.input_names, names)
    hints = request_axes(wide, traced.input_names, names, Dim.AUTO)
    with quiet_libraries():
        again = torch.export.export(
            module, *wide, dynamic_shapes=bind_forward(module.forward, *hints), strict=False
        )
    return dataclasses.replace(
        traced,
        programs={"train": again, "eval": again},
        args=inputs[0],
        kwargs=inputs[1],
        axis_names=kept_axes(again, traced.input_names, names),
    )


def _to(wanted: torch.dtype) -> dict[torch.dtype, torch.dtype]:
    return {dtype: wanted for dtype in _FLOATS if dtype is not wanted}


def _changes(tensors: Any, wanted: torch.dtype) -> bool:
    return any(tensor.dtype in _FLOATS and tensor.dtype is not wanted for tensor in tensors)


def _refuse_training_graph(program: ExportedProgram) -> None:
    """A program's phase is baked in; an active dropout would ship with it."""
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
