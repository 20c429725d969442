"""ExportedProgram -> ONNX, by torch's exporter and our own parameter-blind optimisation."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import TensorArgument

from opdf_compile.artefacts import record_of
from opdf_compile.errors import ExportError, error_line
from opdf_compile.graph import memory_key, quiet_libraries
from opdf_compile.io.export.attention import translations
from opdf_compile.io.export.constants import without_constants
from opdf_compile.io.export.defaults import LOWEST_OPSET, leave_out_defaults
from opdf_compile.io.export.forms import with_known_forms
from opdf_compile.io.export.lowering import lower
from opdf_compile.io.export.masks import mask_directly
from opdf_compile.io.export.names import name_graph
from opdf_compile.io.export.padding import keep_padding
from opdf_compile.io.export.rules import remembered_rules
from opdf_compile.io.export.simplify import merge_tied, optimise
from opdf_compile.io.export.size_sources import read_sizes_from_first_input
from opdf_compile.io.export.transposed import store_transposed
from opdf_compile.io.export.views import with_free_views

if TYPE_CHECKING:
    import onnx_ir as ir

# torch's translations are written for opset 18 and converted upwards from there.
_TRANSLATED = 18
_MISSING = re.compile(
    r"No ONNX function found for <(?:OpOverload\(op='([^']+)'|torch\._higher_order_ops\.(\w+)\.)"
)
_STRIDES = "Cannot view a tensor"
# Kept on the nodes: it says which submodule a node comes from. The rest of the exporter's metadata
# holds source lines and paths of the machine that exported.
_KEPT_METADATA = "pkg.torch.onnx.name_scopes"


def export_program(
    program: ExportedProgram,
    *,
    input_names: Sequence[str],
    output_names: Sequence[str],
    axis_names: Mapping[str, Mapping[int, str]],
    opset: int | None = None,
) -> ir.Model:
    """Translate one program into an ONNX model whose graph does not depend on parameter values.

    Args:
        program: The eval program. It is not changed.
        input_names: Names of its tensor inputs, in order.
        output_names: Names of all leaves of its output, in order.
        axis_names: Names of dynamic axes by input and index.
        opset: The ONNX opset; None for the one that torch's exporter recommends. Below 18 the
            model is translated for 18 and said again in the older words.

    Returns:
        The model, with the record of its parameters in ``metadata_props``.

    Raises:
        ExportError: An operation has no ONNX form, the opset is out of range, or axis names
            contradict the model.
    """
    require_opset(opset)
    tensors = tensor_outputs(program, output_names)
    if not tensors:
        raise ExportError(
            "the model returns no tensor, wanted at least one; return what the ONNX file should "
            "compute"
        )
    with quiet_libraries():
        known = with_known_forms(without_constants(program))
    asked = None if opset is None else max(opset, _TRANSLATED)
    model = _translate(known, asked)
    _check_version(model, asked)
    state = frozenset(program.state_dict)
    # The order matters. What is one value (a tied weight, a shared size) becomes one before equal
    # subexpressions are shared, and the mask's former nodes are dropped by the same clean-up.
    merge_tied(model, _tied_groups(program.state_dict))
    read_sizes_from_first_input(model)
    mask_directly(model)
    with quiet_libraries():
        optimise(model, state)
    # Only folding makes the amounts of a padding constants.
    keep_padding(model)
    leave_out_defaults(model)
    parameters = [value for name, value in model.graph.initializers.items() if name in state]
    store_transposed(parameters)
    # Names come last: until here sizes are known by torch.export's symbols, and passes make names.
    name_graph(model, inputs=input_names, outputs=tensors, axes=axis_names)
    _strip_metadata(model)
    names = [str(value.name) for value in parameters]
    model.metadata_props.update(record_of(names, f"torch.onnx {torch.__version__}"))
    if opset is not None and opset < _TRANSLATED:
        lower(model, opset, program)
    _forget_types(model)
    return model


def _tied_groups(state: Mapping[str, torch.Tensor]) -> list[tuple[str, ...]]:
    """Names of a state dict that are views of the same memory in the same way."""
    groups: dict[Any, list[str]] = {}
    for name, tensor in state.items():
        if not tensor.is_sparse and (key := memory_key(tensor)) is not None:
            groups.setdefault(key, []).append(name)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def tensor_outputs(program: ExportedProgram, names: Sequence[str]) -> list[str]:
    """Of the names of all outputs those of tensors: constants and None are no ONNX outputs."""
    specs = [s for s in program.graph_signature.output_specs if s.kind.name == "USER_OUTPUT"]
    named = zip(names, specs, strict=True)
    return [name for name, spec in named if isinstance(spec.arg, TensorArgument)]


def require_opset(opset: int | None) -> None:
    """Refuse an opset that torch's translator or the package onnx does not know.

    Raises:
        ExportError: It is outside their range.
    """
    if opset is None:
        return
    from onnx.defs import onnx_opset_version

    highest = onnx_opset_version()
    if not isinstance(opset, int) or not LOWEST_OPSET <= opset <= highest:
        raise ExportError(
            f"opset {opset!r} was asked for, wanted {LOWEST_OPSET} to {highest}; leave opset out "
            "for the recommended one"
        )


def _check_version(model: ir.Model, opset: int | None) -> None:
    found = model.opset_imports.get("")
    if opset is not None and found != opset:
        raise ExportError(
            f"the model comes out in opset {found}, wanted {opset}: an operation has no "
            "conversion; leave --opset out"
        )


def _translate(program: ExportedProgram, opset: int | None) -> ir.Model:
    """Run torch's exporter without its optimiser, its prints and its advice."""
    with quiet_libraries():
        try:
            return _run_exporter(program, opset)
        except Exception as error:  # The exporter wraps whatever a translation rule raises.
            if _STRIDES not in str(_chain(error)[-1]):
                raise ExportError(_sentence(error)) from error
        try:
            return _run_exporter(with_free_views(program), opset)
        except Exception as error:  # As above; this was the one failure that has a cure.
            raise ExportError(_sentence(error)) from error


def _run_exporter(program: ExportedProgram, opset: int | None) -> ir.Model:
    with remembered_rules():
        translated = torch.onnx.export(
            program,
            dynamo=True,
            optimize=False,
            verbose=False,
            opset_version=opset,
            custom_translation_table=translations(),
        )
    if translated is None:
        raise RuntimeError("it returned nothing")
    return translated.model


def _chain(error: BaseException) -> list[BaseException]:
    chain = [error]
    while (cause := chain[-1].__cause__) is not None and cause not in chain:
        chain.append(cause)
    return chain


def _sentence(error: BaseException) -> str:
    """One sentence that names the operation, out of the exporter's chain of exceptions."""
    chain = _chain(error)
    for link in chain:
        missing = _MISSING.search(str(link))
        if missing:
            operator = (missing[1] or missing[2]).replace("::", ".")
            return (
                f"the operation {operator} has no ONNX form, wanted operations that the ONNX "
                "exporter knows; write it with others or try a higher --opset"
            )
    return (
        f"the ONNX exporter cannot translate the model ({error_line(chain[-1])}), "
        "wanted operations with an ONNX form; rewrite that operation or try another --opset"
    )


def _forget_types(model: ir.Model) -> None:
    """Describe no initialiser a second time: tools that change one in place trip over it.

    onnxruntime's quantiser transposes a weight, and shape inference then finds the former shape.
    """
    for graph in model.graphs():
        for value in graph.initializers.values():
            value.shape, value.type = None, None


def _strip_metadata(model: ir.Model) -> None:
    import onnx_ir as ir

    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        scope = node.metadata_props.get(_KEPT_METADATA)
        node.metadata_props.clear()
        node.doc_string = None
        if scope is not None:
            node.metadata_props[_KEPT_METADATA] = scope
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.graph.doc_string = None
