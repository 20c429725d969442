"""The folder that ships: ONNX, reference, check data, plan and the hashes of all of them.

    bundle/
      student.onnx  student.check.npz     what ships; the only ONNX file that a loader meets here
      reference/
        reference.onnx  reference.check.npz
      plan.json  manifest.json  and the extra files

A loader that is given the folder picks an ONNX file by itself, and it need not be `student.onnx`:
the reference therefore lies one folder deeper. Bundles of 0.1 have both side by side and stay
readable.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from opdf_compile.artefacts.check_data import check_path, write_check
from opdf_compile.artefacts.record import exporter_of, own_version, version_of
from opdf_compile.errors import ArtefactError
from opdf_compile.files.atomic import atomic_folder, atomic_write, existing_file, sha256
from opdf_compile.io.export.build import Export
from opdf_compile.io.export.save import stage

# The first schema has no folder in the names of its files.
SCHEMA, READABLE = "opdf-bundle/2", ("opdf-bundle/1", "opdf-bundle/2")
STUDENT, REFERENCE = "student.onnx", "reference.onnx"
REFERENCE_FOLDER = "reference"
PLAN, MANIFEST = "plan.json", "manifest.json"
# What other commands put beside a bundle; a new export replaces these with the bundle.
_ADDED = ("report.html", "report.json", "report.md", "*.png")


def write_file(path: Path, export: Export, reference: Export | None = None) -> None:
    """Write ``X.onnx`` and ``X.check.npz``, all or nothing.

    Args:
        path: The ``.onnx`` file.
        export: What to write.
        reference: Written beside it as ``X.reference.onnx`` with check data of its own.

    Raises:
        ArtefactError: A path cannot be written.
        ExportError: The model does not pass ONNX's checker.
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
    side_by_side: bool = False,
) -> None:
    """Write a bundle folder, all or nothing; an older bundle there is replaced.

    Args:
        path: The folder.
        student: What ships.
        reference: The export of the untouched student.
        plan: The plan as JSON text or as the object itself.
        extra_files: Files to copy beside it, such as a tokenizer and its configuration.
        side_by_side: Put the reference beside the student: a folder to look at, as the demo's, in
            place of one that a loader is given.

    Raises:
        ArtefactError: The folder cannot be written, or holds files that are no bundle's.
        ExportError: A model does not pass ONNX's checker.
    """
    _check_extra(extra_files)
    with atomic_folder(path, replaceable=is_bundle) as folder:
        with ExitStack() as stack:
            _stage_pair(student, folder / STUDENT, stack)
            if reference is not None:
                inside = folder if side_by_side else folder / REFERENCE_FOLDER
                inside.mkdir(exist_ok=True)
                _stage_pair(reference, inside / REFERENCE, stack)
        if plan is not None:
            text = plan if isinstance(plan, str) else json.dumps(plan, indent=2)
            (folder / PLAN).write_text(text.rstrip() + "\n", encoding="utf-8")
        for file in extra_files:
            shutil.copyfile(file, folder / file.name)
        manifest = json.dumps(_manifest(folder, student), indent=2)
        (folder / MANIFEST).write_text(manifest + "\n", encoding="utf-8")


def read_manifest(path: Path) -> dict[str, Any]:
    """Read a bundle's manifest.

    Raises:
        ArtefactError: The folder has none, or one of another schema.
    """
    file = existing_file(path / MANIFEST, wanted="a bundle's manifest.json")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ArtefactError(
            f"{file} is no JSON ({str(error)[:100].rstrip('.')}), wanted a bundle's manifest; "
            "export again"
        ) from error
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if schema not in READABLE or not isinstance(manifest.get("files"), dict):
        raise ArtefactError(f"{file} has the schema {schema!r}, wanted {SCHEMA!r}; export again")
    return dict(manifest)


def is_inside(name: str) -> bool:
    """Whether a manifest's name is that of a file of the bundle.

    A manifest is data: a name that leaves the folder is never opened.
    """
    folder, slash, file = name.rpartition("/")
    at_home = folder == REFERENCE_FOLDER if slash else True
    return at_home and Path(file).name == file


def reference_of(path: Path) -> Path | None:
    """The reference of a bundle, wherever its version keeps it; None without one."""
    places = (path / REFERENCE_FOLDER / REFERENCE, path / REFERENCE)
    return next((place for place in places if place.exists()), None)


def changed_files(path: Path) -> tuple[str, ...]:
    """Names of files of a bundle that are missing or differ from the manifest.

    Raises:
        ArtefactError: The manifest cannot be read.
    """
    changed = []
    for name, entry in read_manifest(path)["files"].items():
        file = path / name
        wanted = entry.get("sha256") if isinstance(entry, dict) else None
        if not is_inside(name) or not file.is_file() or sha256(file) != wanted:
            changed.append(name)
    return tuple(changed)


def is_bundle(path: Path) -> bool:
    """Whether a folder holds a bundle and nothing that somebody else put there."""
    try:
        listed = set(read_manifest(path)["files"])
    except ArtefactError:
        return False
    return all(
        name == MANIFEST or name in listed or any(Path(name).match(pattern) for pattern in _ADDED)
        for name in _names(path)
    )


def _stage_pair(export: Export, path: Path, stack: ExitStack) -> None:
    # The check data becomes visible last, so a pair of files never claims a hash it lacks.
    check_file = check_path(path)
    check_temporary = stack.enter_context(atomic_write(check_file))
    onnx_temporary = stage(export.model, path, stack)
    write_check(
        check_temporary, dataclasses.replace(export.check, onnx_sha256=sha256(onnx_temporary))
    )


def _check_extra(files: Sequence[Path]) -> None:
    own = {STUDENT, REFERENCE, PLAN, MANIFEST, REFERENCE_FOLDER}
    for file in files:
        existing_file(file)
        if file.name in own:
            raise ArtefactError(
                f"the extra file {file} has the name of a part of the bundle, wanted another "
                "name; rename it"
            )


def _manifest(folder: Path, student: Export) -> dict[str, Any]:
    opset, exporter, own = _facts(student.model)
    return {
        "schema": SCHEMA,
        "files": {
            name: {"sha256": sha256(folder / name), "bytes": (folder / name).stat().st_size}
            for name in _names(folder)
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
    return opset, producer or "unknown", own_version()


def _names(folder: Path) -> list[str]:
    """What lies in a bundle: files, and folders in which nothing of it can lie."""
    names: list[str] = []
    for entry in folder.iterdir():
        inner = entry.iterdir() if entry.name == REFERENCE_FOLDER and entry.is_dir() else [entry]
        names.extend(found.relative_to(folder).as_posix() for found in inner)
    return sorted(names)


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
