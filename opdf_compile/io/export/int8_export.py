"""An exported model in int8: quantised, with its record, and with what that costs in its notes."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opdf_compile.artefacts import (
    CheckData,
    Drop,
    drop_of,
    link,
    quantisation_constants,
    recorded_parameters,
    replace_record,
)
from opdf_compile.errors import ExportError
from opdf_compile.io.export.build import Export
from opdf_compile.io.export.calibration import rows_in
from opdf_compile.io.export.int8 import quantise
from opdf_compile.io.export.lowering import unoptimised
from opdf_compile.io.export.save import SINGLE_FILE_BYTES, weight_bytes

if TYPE_CHECKING:
    import onnx

INT8 = "int8"


def in_int8(export: Export) -> Export:
    """Quantise an export with its calibration batches.

    The check data stays that of the float32 model: its truth is what int8 is measured against.

    Args:
        export: In float32, with `batches`.

    Raises:
        ExportError: onnxruntime cannot quantise the model, or it is larger than one file.
        InputError: onnxruntime is not installed.
    """
    import onnx
    import onnx_ir as ir

    model = export.model
    if isinstance(model, ir.Model):
        if weight_bytes(model) > SINGLE_FILE_BYTES:
            raise ExportError(
                f"the model has {weight_bytes(model):,} bytes of weights, and int8 is made of one "
                f"file, wanted at most {SINGLE_FILE_BYTES:,}; leave int8 out"
            )
        model = ir.serde.serialize_model(model)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "int8.onnx"
        quantise(model, export.batches, file)
        made = onnx.load(file)
    _record(made, model)
    # The notes of check data are part of every verdict.
    drops = measured_drops(made, export.check)
    notes = (*export.check.notes, _told(export.batches, drops))
    check = dataclasses.replace(export.check, notes=notes)
    return dataclasses.replace(export, model=made, check=check, drops=drops)


def measured_drops(model: onnx.ModelProto, check: CheckData) -> tuple[Drop, ...]:
    """What a quantised model loses on its samples, node by node as the file means it."""
    run = unoptimised(model)
    names = [value.name for value in model.graph.output]
    found = [dict(zip(names, run(sample.inputs), strict=True)) for sample in check.samples]
    truths = {name: [sample.outputs[name] for sample in check.samples] for name in names}
    return tuple(
        drop_of(name, truths[name], [values[name] for values in found])
        for name in names
        if truths[name][0].dtype.kind == "f" and name not in check.random
    )


def _record(made: onnx.ModelProto, source: onnx.ModelProto) -> None:
    """Say which constants of the int8 file training moves, under the names that they have there.

    Scales, zero points and weights in int8 are parameters to every comparison (`artefacts
    .quantisation`). What is left in float32 is one if it was one, or was made of one.
    """
    before = recorded_parameters(source, "the model") or frozenset()
    known = {constant.name for constant in link(source, "").main.constants()}
    view = link(made, "")
    stored = set(quantisation_constants(view))
    kept = [
        constant.name
        for constant in view.main.constants()
        # The runtime makes new constants of parameters: it merges batch norms.
        if constant not in stored and (constant.name in before or constant.name not in known)
    ]
    replace_record(made, sorted(kept))


def _told(batches: Sequence[Mapping[str, Any]], drops: Sequence[Drop]) -> str:
    rows = sum(map(rows_in, batches))
    costs = "; ".join(f"output {drop.output!r} is {drop}" for drop in drops)
    return f"int8 was calibrated with {rows} rows; at export, on this check data: {costs or '-'}"
