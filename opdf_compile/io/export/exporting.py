"""`export_onnx`: a student, and the untouched reference, as ONNX with the evidence beside it."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from opdf_compile.errors import ExportError, InputError, require_type
from opdf_compile.files import existing_file
from opdf_compile.graph import Dynamic
from opdf_compile.io.evidence.given_rows import Samples
from opdf_compile.io.export.build import Export, build_export
from opdf_compile.io.export.bundling import write_bundle, write_file
from opdf_compile.io.export.eval_phase import Exportable
from opdf_compile.io.export.extra_files import require_extra_files
from opdf_compile.io.export.hub import HubFiles, hub_files
from opdf_compile.io.export.int8 import require_quantiser
from opdf_compile.io.export.int8_export import INT8, in_int8
from opdf_compile.io.export.pte import require_lowering
from opdf_compile.io.export.student_export import onnx_student_of

_LOG = logging.getLogger("opdf_compile")


def export_onnx(
    model: Exportable,
    args: Any,
    path: str | os.PathLike[str],
    kwargs: Mapping[str, Any] | None = None,
    *,
    reference: Exportable | None = None,
    dynamic: Dynamic = None,
    opset: int | None = None,
    dtype: str | torch.dtype | None = None,
    samples: Samples | None = None,
    calibrate: Samples | None = None,
    executorch: bool = False,
    plan: Mapping[str, Any] | str | None = None,
    extra_files: Sequence[str | os.PathLike[str]] = (),
) -> Path:
    """Export a student to ONNX, with the check data that verify judges its numbers by.

    A path that ends in ``.onnx`` becomes that file with ``.check.npz`` beside it, and a reference
    becomes ``NAME.reference.onnx`` (with its own check data) beside both. Any other path becomes a
    bundle folder: ``student.onnx`` with its check data, the plan, the extra files, all hashes in
    ``manifest.json``, and in ``reference/`` the file ``reference.onnx`` with its check data. What
    was there before is replaced only when everything has been written.

    Args:
        model: The student in the eval phase's view: a module (whatever its train flag), an
            ExportedProgram of its eval graph, the programs of an archive by name, or a Traced. It
            is not changed.
        args: Example inputs: a tuple of positional inputs, one tensor, or one mapping (a batch).
            ``()`` takes the example that a Traced or an ExportedProgram was traced with.
        path: An ``.onnx`` file or a bundle folder; its parent exists.
        kwargs: Keyword example inputs.
        reference: The untouched student, exported in the same way.
        dynamic: Which axes keep a free size: None for the first axis of every tensor, False for
            none, or letters by input name, as in `trace`: ``{"x": ["batch", 3]}`` or
            ``{"x": {0: "batch"}}``.
        opset: The ONNX opset, 13 or newer; None for the one that torch's exporter recommends. Below
            18 the file is checked in full and must compute the same bits as that of 18.
        dtype: "fp32", "fp16" or "bf16" exports a converted copy; None keeps the model's dtypes.
            "int8" exports in float32 and has onnxruntime quantise the file, and the reference's
            alike: static, QDQ, weights per output channel. The truth stays the float32 model's.
        samples: Rows of your own for the check data: an `.npz` file, or arrays by name. An array by
            an input's name is that input, its rows on the first axis (``NAME@0``, ``NAME@1``, ...
            for rows of several shapes); one of another name is a label of the rows, for the metric
            of `verify`. They run in batches of the example's size and come beside the drawn ones.
        calibrate: For "int8", inputs of the kind that the model will meet: an ``.npz`` or arrays by
            input name, some hundred rows on the first axis, run in batches of the example's size.
            The check data takes its samples of them.
        executorch: Lower the model to ExecuTorch (XNNPACK), too: a ``.pte`` file beside each ONNX
            file, for ``verify(runtime="executorch")``. It takes up to 64 rows (more where the check
            data has more), and other free axes up to their longest in the check data.
        plan: The plan to put into a bundle, as JSON text or the object itself.
        extra_files: Files to copy into a bundle (config.json, a tokenizer's files).

    Every free axis is run at two other sizes, in torch and in the file, before anything is written.
    One that the file does not bear is fixed, in the reference too, with a warning in the log.

    Returns:
        The file or folder that was written.

    Raises:
        ExportError: The model is still expanded, or cannot be said in ONNX or ExecuTorch.
        TraceError: torch.export cannot hold the model as a graph.
        InputError: The example inputs or the samples do not fit the model.
        ArtefactError: The path cannot be written.

    Example:
        >>> opdf.export_onnx(student, (x,), "student.onnx")
        >>> opdf.export_onnx(student, batch, "out/", reference=untouched)
    """
    _require_room(path, plan, extra_files)
    options: dict[str, Any] = {"dynamic": dynamic, "opset": opset, "dtype": dtype}
    options |= {"samples": samples, "calibrate": calibrate, "executorch": executorch}
    exports = exported(model, args, kwargs, reference=reference, **options)
    for sentence in dict.fromkeys(exports[0].fixed.values()):
        _LOG.warning("%s", sentence)
    hub = hub_files(model, reference, [Path(file) for file in extra_files])
    return write(path, *exports, plan=plan, extra_files=extra_files, hub=hub)


def exported(
    model: Exportable,
    args: Any,
    kwargs: Mapping[str, Any] | None = None,
    *,
    reference: Exportable | None = None,
    dtype: str | torch.dtype | None = None,
    calibrate: Samples | None = None,
    executorch: bool = False,
    **options: Any,
) -> tuple[Export, Export | None]:
    """A student and its reference with the same free axes, in memory.

    Options are those of `build_export`, and `dtype` and `calibrate` those of `export_onnx`.
    """
    if executorch:
        _require_lowerable(dtype)
        options["executorch"] = True
    rows = _calibration(dtype, calibrate)
    if rows is None:
        return _exported(model, args, kwargs, reference, dtype=dtype, **options)
    plain = None if onnx_student_of(model) else "fp32"
    made = _exported(model, args, kwargs, reference, dtype=plain, calibration=rows, **options)
    student, untouched = made
    return in_int8(student), None if untouched is None else in_int8(untouched)


def _calibration(dtype: str | torch.dtype | None, given: Samples | None) -> Samples | None:
    """What int8 is to be calibrated with; None for another dtype.

    Raises:
        InputError: One was asked for without the other, or onnxruntime is not installed.
        ArtefactError: The file does not exist.
    """
    if dtype not in (INT8, torch.int8):
        if given is None:
            return None
        raise InputError(
            f"calibration data was given and the dtype is {dtype or 'not given'}, wanted int8: "
            "nothing else is calibrated; give dtype int8, or leave the data out"
        )
    if given is None:
        raise InputError(
            "int8 was asked for without calibration data, and numbers drawn at random would set "
            "its ranges; give some hundred rows of the data that the model will meet: --calibrate "
            'F.npz, or calibrate={"x": array}'
        )
    require_quantiser()
    if isinstance(given, (str, os.PathLike)):
        existing_file(given, wanted="calibration rows as .npz")
    return given


def _require_lowerable(dtype: str | torch.dtype | None) -> None:
    """Refuse what ExecuTorch cannot be asked for, before anything is exported.

    Raises:
        InputError: It is not installed, or int8 was asked for.
    """
    if dtype in (INT8, torch.int8):
        raise InputError(
            "ExecuTorch and int8 were both asked for, and int8 is made of the ONNX file, which "
            "ExecuTorch does not read; leave one of them out"
        )
    require_lowering()


def _exported(
    model: Exportable,
    args: Any,
    kwargs: Mapping[str, Any] | None,
    reference: Exportable | None,
    **options: Any,
) -> tuple[Export, Export | None]:
    student = build_export(model, args, kwargs, **options)
    if reference is None:
        return student, None
    untouched = build_export(reference, args, kwargs, fixed=student.fixed, **options)
    # A verdict needs two files with the same free axes, and the reference may bear fewer of them.
    if untouched.fixed.keys() != student.fixed.keys():
        student = build_export(model, args, kwargs, fixed=untouched.fixed, **options)
    return student, untouched


def write(
    path: str | os.PathLike[str],
    student: Export,
    untouched: Export | None,
    *,
    plan: Mapping[str, Any] | str | None = None,
    extra_files: Sequence[str | os.PathLike[str]] = (),
    hub: HubFiles | None = None,
) -> Path:
    """Write what `exported` gave as a file or a bundle folder; see `export_onnx`."""
    target = Path(path)
    if target.suffix == ".onnx":
        write_file(target, student, untouched)
    else:
        extra = [Path(file) for file in extra_files]
        write_bundle(target, student, untouched, plan=plan, extra_files=extra, hub=hub)
    return target


def _require_room(
    path: str | os.PathLike[str], plan: object, extra_files: Sequence[str | os.PathLike[str]]
) -> None:
    """Refuse a plan or extra files for a path that is one file, and what is no path.

    Raises:
        ExportError: There is nowhere to put them.
        ArtefactError: An extra file does not exist, or its name is taken.
        InputError: The path is none.
    """
    require_type(path, (str, os.PathLike), "the path", "a file or a folder; student.onnx, say")
    target = Path(path)
    if target.suffix == ".onnx" and (plan is not None or extra_files):
        raise ExportError(
            f"{target} is one file and a plan or extra files were given, wanted a bundle for "
            "them; give a folder as the path"
        )
    require_extra_files([Path(file) for file in extra_files])
