"""A file that should be folded and is not, or holds weights that no training moved.

The numbers cannot tell: a model whose branches were never merged computes the same function, and
one whose adapters were dropped may come close. The evidence of a fold therefore names the matrices
that a folded file has no use for (`artefacts.fold_evidence`). A bundle with a plan says which
weights were trained as something else; where all of them are the reference's, bit by bit, what was
trained never reached the file.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping

from opdf_compile.artefacts import (
    MANIFEST,
    PLAN,
    fingerprint_of,
    held_of,
    read_fold_record,
)
from opdf_compile.errors import ArtefactError
from opdf_compile.files import load_json
from opdf_compile.parity.compared_files import ComparedFiles
from opdf_compile.parity.model_file import ModelFile

_MOST_BYTES = 64 << 20


def unfolded(files: ComparedFiles) -> tuple[str, ...]:
    """A sentence where the candidate's weights show that nothing was folded; else none.

    Raises:
        ArtefactError: The record is damaged, or a file cannot be read.
    """
    return (*_still_held(files), *_untrained(files))


def _still_held(files: ComparedFiles) -> tuple[str, ...]:
    record = None if files.check is None else read_fold_record(files.check)
    if record is None:
        return ()
    held = held_of(record, files.candidate.model, str(files.candidate.path.parent))
    if not held:
        return ()
    more = f" and {len(held) - 1} more" if len(held) > 1 else ""
    return (
        f"the fold did not happen: {files.candidate.name} still holds {held[0]!r}{more} as before, "
        f"which folding by {record.by} changes; export the folded model",
    )


def _untrained(files: ComparedFiles) -> tuple[str, ...]:
    keys = _planned(files)
    if not keys or files.reference is None:
        return ()
    ours, theirs = _weights(files.candidate, keys), _weights(files.reference, keys)
    both = ours.keys() & theirs.keys()
    if not both or any(ours[name] != theirs[name] for name in both):
        return ()
    return (
        f"the fold did not happen: all {len(both)} planned weights of {files.candidate.name} are "
        f"those of the untouched {files.reference.name}, bit by bit, although the bundle has a "
        "plan; fold what was trained, and export that",
    )


def _planned(files: ComparedFiles) -> frozenset[str]:
    """The weights that a bundle's plan names, as they may be called in its files."""
    folder = files.candidate.path.parent
    if not (folder / MANIFEST).is_file() or not (folder / PLAN).is_file():
        return frozenset()
    try:
        plan = load_json(folder / PLAN, "a plan", most=_MOST_BYTES)
        keys = [str(entry["key"]) for entry in (*plan["entries"], *plan.get("sites", ()))]
    except (ArtefactError, KeyError, TypeError):
        return frozenset()  # The manifest has its hash; what it should say is not this check's.
    return frozenset(name for key in keys for name in (key, f"{key}.T"))


def _weights(file: ModelFile, names: frozenset[str]) -> Mapping[str, Hashable]:
    folder = str(file.path.parent)
    tensors = (tensor for tensor in file.model.graph.initializer if tensor.name in names)
    return {tensor.name: fingerprint_of(tensor, folder) for tensor in tensors}
