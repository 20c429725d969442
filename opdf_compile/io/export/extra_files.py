"""The files of the user's own that a bundle takes along."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from opdf_compile.artefacts import (
    MANIFEST,
    PLAN,
    REFERENCE,
    REFERENCE_FOLDER,
    STUDENT,
    check_path,
    pte_path,
)
from opdf_compile.errors import ArtefactError
from opdf_compile.files import existing_file
from opdf_compile.io.export.save import data_path

_MODELS = [Path(STUDENT), Path(REFERENCE)]
_BESIDE = [place(model) for model in _MODELS for place in (check_path, data_path, pte_path)]
_OWN = {STUDENT, REFERENCE, PLAN, MANIFEST, REFERENCE_FOLDER, *(file.name for file in _BESIDE)}


def require_extra_files(files: Sequence[Path]) -> None:
    """Refuse files that would take the place of a part of a bundle, or of each other.

    Names that differ in capitals only are one name to many file systems.

    Raises:
        ArtefactError: One does not exist, or its name is taken.
    """
    taken: dict[str, Path] = {}
    for file in files:
        existing_file(file)
        name = file.name.casefold()
        if name in _OWN:
            raise ArtefactError(
                f"the extra file {file} has the name of a part of the bundle, wanted another "
                "name; rename it"
            )
        if name in taken:
            raise ArtefactError(
                f"the extra files {taken[name]} and {file} would both be {file.name} in the "
                "bundle, wanted one file of each name; rename one, or leave it out"
            )
        taken[name] = file
