"""An exported model said in an older opset, for runtimes that know no newer one.

torch's translations are those of opset 18. What changed between 13 and 18 is little: axes of a
reduction were an attribute, a Split into equal parts had no number, and some operators did not
exist. Everything else is said in the same words, with the attributes that came later left out (see
`defaults`). Nothing is taken on trust: onnx checks the result in full, and the runtime must compute
the same bits from both files, operator by operator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch.utils._pytree as pytree
from torch import Tensor

from opdf_compile.errors import ExportError, first_line
from opdf_compile.extras import requirements_of
from opdf_compile.graph import recorded_inputs
from opdf_compile.io.evidence.evaluating import as_array
from opdf_compile.io.export.padding import named_axes
from opdf_compile.io.export.simplify import drop_unused

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir
    from torch.export import ExportedProgram

# What the runtime says of a model that it does not take is in its exception, too.
_FATAL_ONLY = 4
# The sum became different five opsets earlier.
_REDUCTIONS = frozenset(
    f"Reduce{name}"
    for name in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
)


def lower(model: ir.Model, opset: int, program: ExportedProgram) -> None:
    """Take a model from the opset of torch's translations to an older one.

    Args:
        model: Changed in place.
        opset: The opset wanted.
        program: What was translated; its example inputs are run.

    Raises:
        ExportError: An operator does not exist there, or the file cannot be shown to be the same.
    """
    import onnx_ir as ir
    from onnx import helper

    _require_operators(model, opset)
    _require_safe_padding(model, opset)
    before = ir.serde.serialize_model(model)
    for node in list(model.graph.all_nodes()):
        if node.op_type in _REDUCTIONS:
            _axes_as_attribute(node, opset)
        elif node.op_type == "Split":
            _parts_without_number(node, opset)
        elif node.op_type == "Reshape" and opset < 14:
            _without_zeros(node)
        # A version of the format that knows this opset knows no metadata of nodes.
        node.metadata_props.clear()
    drop_unused(model)
    model.opset_imports[""] = opset
    model.ir_version = helper.find_min_ir_version_for([helper.make_opsetid("", opset)])
    after = ir.serde.serialize_model(model)
    _check(after, opset)
    _compare(before, after, opset, program)


def _require_operators(model: ir.Model, opset: int) -> None:
    from onnx import defs

    operators = sorted({node.op_type for node in model.graph.all_nodes() if not node.domain})
    missing = [name for name in operators if not defs.has(name, opset)]
    if not missing:
        return
    lowest = next(
        n for n in range(opset, defs.onnx_opset_version()) if all(defs.has(m, n) for m in missing)
    )
    raise ExportError(
        f"opset {opset} was asked for and has no {', '.join(missing)}, wanted an opset that knows "
        f"every operator of the model; give {lowest} or more"
    )


def _require_safe_padding(model: ir.Model, opset: int) -> None:
    guarded = next((node for node in model.graph.all_nodes() if named_axes(node)), None)
    if guarded is not None:
        raise ExportError(
            f"opset {opset} was asked for and {guarded.name} pads with named axes, which keeps "
            "ONNX Runtime from a wrong padding of a max-pool and exists from opset 18 on; give 18 "
            "or more"
        )


def _axes_as_attribute(node: ir.Node, opset: int) -> None:
    import onnx_ir as ir

    if len(node.inputs) < 2 or node.inputs[1] is None:
        return
    axes = ir.convenience.get_const_tensor(node.inputs[1])
    if axes is None or "noop_with_empty_axes" in node.attributes:
        raise ExportError(
            f"opset {opset} was asked for and the axes of {node.name} ({node.op_type}) are no "
            "constant, wanted fixed axes below opset 18; give 18 or more"
        )
    node.attributes["axes"] = ir.AttrInt64s("axes", [int(axis) for axis in axes.numpy()])
    node.resize_inputs(1)


def _parts_without_number(node: ir.Node, opset: int) -> None:
    """Equal parts need no number; others would need sizes."""
    if "num_outputs" not in node.attributes:
        return
    parts, axis = node.attributes["num_outputs"].as_int(), node.attributes.get_int("axis", 0)
    value = node.inputs[0]
    size = value.shape[axis] if value is not None and value.shape is not None else None
    if not isinstance(size, int) or size % parts:
        raise ExportError(
            f"opset {opset} was asked for and {node.name} splits {size} into {parts} parts, wanted "
            "equal parts of a fixed size below opset 18; give 18 or more"
        )
    node.attributes.pop("num_outputs")


def _without_zeros(node: ir.Node) -> None:
    """A shape without a zero means the same with `allowzero` and without."""
    import onnx_ir as ir

    given = node.inputs[1]
    shape = None if given is None else ir.convenience.get_const_tensor(given)
    if shape is not None and shape.numpy().all():
        node.attributes.pop("allowzero", None)


def _check(proto: onnx.ModelProto, opset: int) -> None:
    import onnx

    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            f"opset {opset} was asked for and cannot say the model ({first_line(error)}), wanted "
            "operators in a form that it knows; give 18 or more"
        ) from error
    # A message of two GB and more cannot be checked in memory.
    except ValueError as error:
        raise ExportError(
            f"opset {opset} was asked for and the model is too large to be checked in it "
            f"({first_line(error)}); give 18 or more"
        ) from error


def _compare(
    before: onnx.ModelProto, after: onnx.ModelProto, opset: int, program: ExportedProgram
) -> None:
    leaves = pytree.tree_leaves(recorded_inputs(program))
    arrays = [as_array(leaf) for leaf in leaves if isinstance(leaf, Tensor)]
    feeds = dict(zip((port.name for port in before.graph.input), arrays, strict=True))
    try:
        pairs = zip(unoptimised(before)(feeds), unoptimised(after)(feeds), strict=True)
    except ImportError as error:
        raise ExportError(
            f"opset {opset} was asked for, which is checked by running both files, and onnxruntime "
            f"is not installed; install it with pip install {requirements_of('gpu')} (or "
            "onnxruntime), or give 18 or more"
        ) from error
    except Exception as error:  # The runtime's own classes have no common base.
        raise ExportError(
            f"opset {opset} was asked for and ONNX Runtime cannot run the file to check it "
            f"({first_line(error)}); give 18 or more"
        ) from error
    for port, (wanted, found) in zip(before.graph.output, pairs, strict=True):
        # The bytes also tell a NaN from a number, and agree where both are the same NaN.
        if found.dtype != wanted.dtype or found.tobytes() != wanted.tobytes():
            raise ExportError(
                f"opset {opset} was asked for and computes another {port.name}, wanted the same "
                "bits; give 18 or more, and please report the model"
            )


def unoptimised(model: onnx.ModelProto | Path) -> Callable[[Mapping[str, Any]], list[Any]]:
    """The runtime on the CPU, operator by operator, so that no optimisation makes a difference.

    Raises:
        ImportError: onnxruntime is not installed.
        Exception: It does not take the model; its own classes have no common base.
    """
    import onnxruntime as ort

    options, run_options = ort.SessionOptions(), ort.RunOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = run_options.log_severity_level = _FATAL_ONLY
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return lambda feeds: [np.asarray(v) for v in session.run(None, dict(feeds), run_options)]
