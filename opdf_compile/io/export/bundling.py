"""Writing a bundle, the folder that ships: see `opdf_compile.artefacts.bundle`."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from opdf_compile.artefacts import (
    CARD,
    MANIFEST,
    PLAN,
    REFERENCE,
    REFERENCE_FOLDER,
    SCHEMA,
    STUDENT,
    CardFacts,
    ExportFacts,
    as_bytes,
    card_of,
    check_path,
    claim_of,
    exporter_of,
    forms_of,
    interface_of,
    is_bundle,
    kept_card,
    listed_parameters,
    names_in,
    planned_weights,
    pte_path,
    recorded_parameters,
    version_of,
    write_check,
)
from opdf_compile.files import atomic_folder, atomic_write, sha256
from opdf_compile.io.export.build import Export
from opdf_compile.io.export.extra_files import require_extra_files
from opdf_compile.io.export.hub import CONFIG, WEIGHTS, HubFiles
from opdf_compile.io.export.pte import lowered
from opdf_compile.io.export.save import stage
from opdf_compile.io.models.safetensors_file import write_student
from opdf_compile.version import __version__

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir


def write_file(path: Path, export: Export, reference: Export | None = None) -> None:
    """Write ``X.onnx`` and ``X.check.npz``, and where it is asked for ``X.pte``, all or nothing.

    Args:
        path: The ``.onnx`` file.
        export: What to write.
        reference: Written beside it as ``X.reference.onnx`` with check data of its own.

    Raises:
        ArtefactError: A path cannot be written.
        ExportError: The model does not pass ONNX's checker, or ExecuTorch cannot lower it.
    """
    with ExitStack() as stack:
        _stage_pair(export, path, stack)
        if reference is not None:
            _stage_pair(reference, path.with_suffix(".reference.onnx"), stack)


def write_bundle(
    path: Path,
    student: Export,
    reference: Export | None = None,
    *,
    plan: Mapping[str, Any] | str | None = None,
    extra_files: Sequence[Path] = (),
    hub: HubFiles | None = None,
    becomes: Path | None = None,
    side_by_side: bool = False,
) -> None:
    """Write a bundle folder, all or nothing; an older bundle there is replaced.

    What the owner wrote into its card, README.md, comes through.

    Args:
        path: The folder.
        student: What ships.
        reference: The export of the untouched student.
        plan: The plan as JSON text or as the object itself.
        extra_files: Files to copy beside it, such as a tokenizer and its configuration.
        hub: What lets a library load the folder.
        becomes: The folder that it will be, where the caller writes it aside and moves it: the card
            has its name, and what the owner wrote into the card there.
        side_by_side: Put the reference beside the student: a folder to look at, as the demo's, in
            place of one that a loader is given.

    Raises:
        ArtefactError: The folder cannot be written, or holds files that are no bundle's.
        ExportError: A model does not pass ONNX's checker, or ExecuTorch cannot lower it.
    """
    require_extra_files(extra_files)
    final = becomes or path
    with atomic_folder(path, replaceable=is_bundle) as folder:
        with ExitStack() as stack:
            _stage_pair(student, folder / STUDENT, stack, planned_weights(_plan_json(plan)))
            if reference is not None:
                inside = folder if side_by_side else folder / REFERENCE_FOLDER
                inside.mkdir(exist_ok=True)
                _stage_pair(reference, inside / REFERENCE, stack)
        if plan is not None:
            text = plan if isinstance(plan, str) else json.dumps(plan, indent=2)
            (folder / PLAN).write_text(text.rstrip() + "\n", encoding="utf-8")
        for file in extra_files:
            shutil.copyfile(file, folder / file.name)
        found = hub or HubFiles()
        if found.config:
            (folder / CONFIG).write_text(found.config, encoding="utf-8")
        if found.weights:
            write_student(folder / WEIGHTS, found.weights)
        manifest = json.dumps(_manifest(folder, student), indent=2)
        (folder / MANIFEST).write_text(manifest + "\n", encoding="utf-8")
        # Not in the manifest: its owner fills it in, and a verdict is written into it.
        if not (folder / CARD).exists():
            facts = CardFacts(
                final.resolve().name,
                found.library,
                found.base_model,
                interface_of(_ports(student.model), folder / STUDENT),
                forms_of(_plan_json(plan)),
                sha256(folder / STUDENT),
                compared=reference is not None,
            )
            (folder / CARD).write_bytes(as_bytes(card_of(facts, kept_card(final))))


def _ports(model: Any) -> Any:
    """Inputs and outputs as a message, without the weights."""
    import onnx
    import onnx_ir as ir

    if isinstance(model, onnx.ModelProto):
        return model
    graph = onnx.GraphProto(
        input=map(ir.serde.serialize_value, model.graph.inputs),
        output=map(ir.serde.serialize_value, model.graph.outputs),
    )
    return onnx.ModelProto(graph=graph)


def _plan_json(plan: Mapping[str, Any] | str | None) -> Mapping[str, Any]:
    """The plan as JSON; nothing where the caller's text is no plan."""
    try:
        told = json.loads(plan) if isinstance(plan, str) else plan
    except (ValueError, RecursionError):
        return {}
    return told if isinstance(told, Mapping) else {}


def _stage_pair(
    export: Export, path: Path, stack: ExitStack, planned: tuple[str, ...] = ()
) -> None:
    # What claims the hash of the ONNX file becomes visible after it.
    check_temporary = stack.enter_context(atomic_write(check_path(path)))
    pte_temporary = stack.enter_context(atomic_write(pte_path(path))) if export.lowers else None
    _add_metadata(export.model, claim_of(planned))
    onnx_hash = sha256(stage(export.model, path, stack))
    facts = ExportFacts(_parameters(export.model), planned)
    write_check(
        check_temporary, dataclasses.replace(export.check, onnx_sha256=onnx_hash, facts=facts)
    )
    if pte_temporary and export.lowers:
        pte_temporary.write_bytes(lowered(export.lowers, export.check, onnx_hash))


def _add_metadata(model: ir.Model | onnx.ModelProto, entries: Mapping[str, str]) -> None:
    import onnx

    # What is written twice says it once.
    if isinstance(model, onnx.ModelProto):
        known = {entry.key for entry in model.metadata_props}
        for key in entries.keys() - known:
            model.metadata_props.add(key=key, value=entries[key])
    else:
        model.metadata_props.update(entries)


def _parameters(model: ir.Model | onnx.ModelProto) -> tuple[str, ...]:
    import onnx

    if isinstance(model, onnx.ModelProto):
        return tuple(sorted(recorded_parameters(model, "the model") or ()))
    return listed_parameters(model.metadata_props)


def _manifest(folder: Path, student: Export) -> dict[str, Any]:
    opset, exporter, own = _facts(student.model)
    return {
        "schema": SCHEMA,
        "files": {
            name: {"sha256": sha256(folder / name), "bytes": (folder / name).stat().st_size}
            for name in names_in(folder)
        },
        "opset": opset,
        "exporter": exporter,
        "versions": versions(own),
    }


def _facts(model: Any) -> tuple[int | None, str, str]:
    """Opset, exporter and version of ours; an ONNX student's file names its own producer."""
    import onnx

    if not isinstance(model, onnx.ModelProto):
        metadata = model.metadata_props
        said = (exporter_of(metadata) or "unknown", version_of(metadata) or "unknown")
        return (model.opset_imports.get(""), *said)
    opset = next((e.version for e in model.opset_import if e.domain in ("", "ai.onnx")), None)
    producer = f"{model.producer_name} {model.producer_version}".strip()
    # An int8 file of ours has a record of its exporter, and the quantiser as its producer.
    made = exporter_of({entry.key: entry.value for entry in model.metadata_props})
    return opset, made or producer or "unknown", __version__


def versions(own: str) -> dict[str, str]:
    """Versions of the libraries that shape an export."""
    import onnx
    import onnx_ir
    import onnxscript

    return {
        "opdf-compile": own,
        "torch": torch.__version__,
        "onnx": onnx.__version__,
        "onnxscript": onnxscript.__version__,
        "onnx-ir": onnx_ir.__version__,
    }
