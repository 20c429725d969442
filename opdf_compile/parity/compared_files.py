"""Which files a verification is about: two models, their check data, and a bundle's hashes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any

from opdf_compile.artefacts import (
    MANIFEST,
    REFERENCE,
    REFERENCE_FOLDER,
    STUDENT,
    changed_files,
    check_path,
    digests_of,
    exporter_of,
    is_inside,
    opsets_of,
    read_manifest,
    reference_of,
)
from opdf_compile.errors import ArtefactError, InputError, require_type
from opdf_compile.files import existing_file, is_folder
from opdf_compile.parity.model_file import ModelFile, PathLike

_WANTED = "an ONNX model"
_PATH = (str, os.PathLike)
_EXPORTED = "the path of an ONNX file or a bundle; write one with opdf.export_onnx"


@dataclass(frozen=True)
class ComparedFiles:
    """The files of one verification.

    Attributes:
        candidate: The ONNX file about to ship.
        reference: The export of the untouched student, if there is one.
        check: The candidate's check data, if there is any.
        reference_check: The reference's.
        tampered: A sentence for each file that is not what its bundle's manifest says.
        listed: Further files of the bundle.
        digests: The SHA-256 of files that were hashed, by path: large ones are read once for it.
    """

    candidate: ModelFile
    reference: ModelFile | None
    check: Path | None
    reference_check: Path | None
    tampered: tuple[str, ...] = ()
    listed: tuple[Path, ...] = ()
    digests: Mapping[Path, str] = field(default_factory=dict)

    def table(self) -> dict[str, dict[str, Any]]:
        """By name: hash, size, opset and exporter; opset and exporter are null for other files."""
        models = {m.path: m for m in (self.candidate, self.reference) if m is not None}
        found = (*models, self.check, self.reference_check, *self.listed)
        paths = list(dict.fromkeys(path for path in found if path is not None))
        names = [path.name for path in paths]
        # Two models may both be called model.onnx; then the folders tell them apart.
        return {
            path.name if names.count(path.name) == 1 else path.as_posix(): _describe(
                models.get(path) or ModelFile(path, self.digests.get(path))
            )
            for path in paths
        }


def find_files(
    candidate: PathLike,
    reference: PathLike | None,
    check: PathLike | None,
    reference_check: PathLike | None = None,
) -> ComparedFiles:
    """Locate the files.

    Args:
        candidate: An ONNX file, or a bundle folder.
        reference: An ONNX file; None means the bundle's own.
        check: Check data of the candidate; None means the file of its name, if it exists.
        reference_check: Check data of the reference; None means the same.

    Raises:
        ArtefactError: A file is missing, or the folder is no bundle.
        InputError: An argument is no path.
    """
    require_type(candidate, _PATH, "the candidate", _EXPORTED)
    require_type(reference, (*_PATH, NoneType), "the reference", _EXPORTED)
    for file in (check, reference_check):
        require_type(file, (*_PATH, NoneType), "the check data", "the path of a .check.npz")
    path = Path(candidate)
    tampered: tuple[str, ...] = ()
    listed: tuple[Path, ...] = ()
    digests: dict[Path, str] = {}
    other = None if reference is None else existing_file(reference, wanted=_WANTED)
    if is_folder(path):
        tampered, listed, digests = _audit(path)
        other = other or reference_of(path)
        path = path / STUDENT
    path = existing_file(path, wanted=_WANTED)
    given, beside = (
        None if file is None else existing_file(file, wanted="check data (.check.npz)")
        for file in (check, reference_check)
    )
    return ComparedFiles(
        candidate=ModelFile(path, digests.get(path)),
        reference=None if other is None else ModelFile(other, digests.get(other)),
        check=given or _beside(path),
        reference_check=None if other is None else beside or _beside(other),
        tampered=tampered,
        listed=listed,
        digests=digests,
    )


def require_reference(files: ComparedFiles, asked: tuple[str, ...]) -> None:
    """Refuse to go on where a part needs a reference and there is none.

    Raises:
        InputError: There is none.
    """
    # The metric can do with the torch model's outputs, and says so where it has neither.
    needy = [part for part in asked if part not in ("numerics", "metric")]
    if needy and files.reference is None:
        raise InputError(
            f"{' and '.join(needy)} of {files.candidate} cannot be checked without the export "
            "of the untouched student; give reference= (--reference), or ask for numerics only"
        )


def _audit(folder: Path) -> tuple[tuple[str, ...], tuple[Path, ...], dict[Path, str]]:
    """Compare a bundle with its manifest: what changed, the files it lists, and their hashes."""
    names = [str(name) for name in read_manifest(folder)["files"]]
    plain = [name for name in names if is_inside(name)]
    for name in plain:
        if not (folder / name).is_file():
            raise ArtefactError(
                f"{folder / name} is missing although {MANIFEST} lists it; restore it or export "
                "the bundle again"
            )
    digests = digests_of(folder)
    changed = changed_files(folder, digests)
    sentences = [
        f"{name} is not the file that was exported: its SHA-256 differs from {MANIFEST}"
        for name in changed
    ]
    reference = reference_of(folder)
    both = {STUDENT, "" if reference is None else reference.relative_to(folder).as_posix()}
    if sentences and set(changed) == both:
        # Nobody can tell a tool from somebody else, but both models alone is what a tool leaves.
        sentences[0] += (
            f"; if a tool rewrote {' and '.join(sorted(both, reverse=True))} in place, verify them "
            "as a pair of files (CANDIDATE.onnx --reference REF.onnx) or export the bundle again"
        )
    # A file that the manifest does not know was put there by somebody else.
    models = (STUDENT, REFERENCE, f"{REFERENCE_FOLDER}/{REFERENCE}")
    looked_at = (*models, *(check_path(Path(name)).as_posix() for name in models))
    sentences += [
        f"{name} is not part of what was exported: {MANIFEST} does not list it"
        for name in looked_at
        if name not in plain and (folder / name).exists()
    ]
    hashed = {folder / name: digest for name, digest in digests.items()}
    return tuple(sentences), tuple(folder / name for name in plain), hashed


def _beside(path: Path) -> Path | None:
    check = check_path(path)
    return check if check.exists() else None


def _describe(file: ModelFile) -> dict[str, Any]:
    entry: dict[str, Any] = {"sha256": file.sha256, "bytes": file.path.stat().st_size}
    if file.path.suffix != ".onnx":
        return {**entry, "opset": None, "exporter": None}
    model = file.model
    metadata: Mapping[str, str] = {item.key: item.value for item in model.metadata_props}
    producer = f"{model.producer_name} {model.producer_version}".strip()
    return {
        **entry,
        "opset": opsets_of(model.opset_import).get(""),
        "exporter": exporter_of(metadata) or producer or None,
    }
