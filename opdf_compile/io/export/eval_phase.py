"""A model of any accepted form -> the graph of its eval phase, in the dtype that is wanted."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from opdf_compile.errors import ExportError, TraceError, first_line
from opdf_compile.graph import (
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
    request_axes,
    trace,
    widen_axes,
)
from opdf_compile.io.dtypes import dtype_name
from opdf_compile.io.evidence.half_range import narrowed, too_large
from opdf_compile.io.evidence.retype import cast_leaf, retyped
from opdf_compile.io.evidence.truth import graph_of
from opdf_compile.io.export.experts import batched_experts
from opdf_compile.io.export.refusals import refuse_cores, refuse_expanded, require_graph

EXPORT_DTYPES: Mapping[str, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
# What `as_traced` accepts.
Exportable = nn.Module | ExportedProgram | Mapping[str, ExportedProgram] | Traced
_FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})


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
        refuse_expanded(model)
        traced = _trace_module(model, normalise_inputs(args, kwargs), dynamic, wanted)
        require_graph(traced)
        return traced
    if isinstance(model, ExportedProgram | Mapping):
        model = trace(model, dynamic=dynamic)
    if not isinstance(model, Traced):
        raise ExportError(
            f"the model is a {type(model).__name__}, wanted a torch.nn.Module, an ExportedProgram "
            "or a Traced; pass the module itself"
        )
    require_graph(model)
    refuse_cores(model.programs["eval"])
    return _retrace(_with_example(model, args, kwargs), wanted)


def parse_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """Read the `dtype` option.

    Raises:
        ExportError: It is none of fp32, fp16, bf16.
    """
    if dtype is None:
        return None
    found = EXPORT_DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found not in EXPORT_DTYPES.values():
        raise ExportError(
            f"the dtype is {dtype!s}, wanted fp32, fp16, bf16 or int8; choose one of them"
        )
    return found


def _trace_module(
    model: nn.Module, inputs: CallArguments, dynamic: Dynamic, wanted: torch.dtype | None
) -> Traced:
    if wanted is None or not _changes(model.state_dict().values(), wanted):
        return trace_eval(model, inputs, dynamic)
    mapping = _to(wanted)
    converted = deep_copy(model).to(wanted)
    _narrow(converted, model, wanted)
    converted_inputs = pytree.tree_map(lambda leaf: cast_leaf(leaf, mapping), inputs)
    try:
        return trace_eval(converted, converted_inputs, dynamic)
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


def trace_eval(model: nn.Module, inputs: CallArguments, dynamic: Dynamic) -> Traced:
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
        return exported_again(traced, _to(wanted), traced.axis_names)
    except Exception as error:  # The graph's own operations raise whatever they like.
        raise ExportError(
            f"the program does not run in {dtype_name(wanted)} "
            f"({first_line(error)}), wanted a graph without mixed dtypes; export the module "
            "itself with a dtype"
        ) from error


def exported_again(
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
