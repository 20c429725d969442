"""A candidate that holds the untouched student's weights, or a reference that is the candidate.

Both look alike: two files with the same numbers. It is a fault where something says that the
student was trained as something else: a bundle's plan, or what export wrote of it into the student
and its check data. Without such a claim the same numbers are what an untrained student has, and a
file that is compared with itself is a check of `verify`.

A planned weight is known by its name. A tool may rename it, quantise it, join it with others, or
move it into a node or a nested graph; where a name is gone, only equal constants all over refute.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator

from opdf_compile.artefacts import Constant, claimed_weights
from opdf_compile.parity.compared_files import ComparedFiles
from opdf_compile.parity.folded.claims import Claim
from opdf_compile.parity.model_file import ModelFile


def untouched(files: ComparedFiles, claim: Claim | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Sentences that refute, and notes.

    Args:
        files: The candidate and its reference.
        claim: What a plan over-parameterised; None where nothing says so.

    Raises:
        ArtefactError: A file cannot be read.
    """
    if files.reference is None:
        return (), ()
    ours, theirs = _names(files.candidate, files.reference)
    if _same(files.candidate, files.reference):
        found = f"{ours} and {theirs} are the same file (SHA-256 {files.candidate.sha256[:12]}..)"
        if claim is None:
            return (), (f"{found}: structure and latency compare it with itself",)
        sentence = (
            f"the reference is the candidate: {found}, although {claim.source}; give the export of "
            "the untouched student as the reference"
        )
        return (sentence,), ()
    if claim is not None and (sentence := _unmoved(files.candidate, files.reference, claim)):
        return (sentence,), ()
    if claimed_weights(files.reference.model):
        return (), (f"{theirs} was exported with a plan itself, so it is no untouched student",)
    return (), ()


def _names(*files: ModelFile) -> list[str]:
    names = [file.name for file in files]
    return names if len(set(names)) == len(names) else [str(file) for file in files]


def _same(candidate: ModelFile, reference: ModelFile) -> bool:
    """Whether both are one file, its external data included."""
    if candidate.path.resolve() == reference.path.resolve():
        return True
    if candidate.sha256 != reference.sha256:
        return False
    # The hash of a file does not cover what it keeps in another one.
    external = any(c.proto.external_data for c in _constants(candidate) if not c.is_sparse)
    return not external or _numbers(candidate) == _numbers(reference)


def _unmoved(candidate: ModelFile, reference: ModelFile, claim: Claim) -> str:
    """Say that no planned weight moved; empty where one did, or where nobody can tell."""
    planned, beside = _planned(candidate, claim), _planned(reference, claim)
    both = planned.keys() & beside.keys()
    if any(planned[key] != beside[key] for key in both):
        return ""
    named = both == claim.weights
    # A tool that rewrote the files may have left some planned weights, and those may be the frozen
    # ones. Then all numbers must be the same, and weights must be among them: those that a file
    # keeps where nobody looks have been compared with nothing.
    alike = _holds_weights(candidate) and _numbers(candidate) == _numbers(reference)
    if not (named or alike):
        return ""
    what = f"all {len(both)} planned weights" if named else "all constants"
    ours, theirs = _names(candidate, reference)
    found = (
        f"the fold did not happen: {what} of {ours} are those of the untouched {theirs}, bit by "
        f"bit, although {claim.source}"
    )
    if not alike:
        return f"{found}, and other numbers differ; fold what was trained, and export that"
    every = ", and so is every other number" if named else ""
    return (
        f"{found}{every}; fold what was trained, and export that, or, where the reference is a "
        "second export of the trained student, a copy from before training"
    )


def _planned(file: ModelFile, claim: Claim) -> dict[str, frozenset[Hashable]]:
    """Fingerprints of planned weights by their key; a file may hold one transposed, or both."""
    keys = {name: key for key in claim.weights for name in (key, f"{key}.T")}
    found: dict[str, frozenset[Hashable]] = {}
    for constant in _constants(file):
        key = keys.get(constant.name)
        if key is not None:
            found[key] = found.get(key, frozenset()) | {constant.fingerprint}
    return found


def _numbers(file: ModelFile) -> frozenset[Hashable]:
    """Fingerprints of all constants, of whatever dtype and name; files share equal ones at will."""
    return frozenset(constant.fingerprint for constant in _constants(file))


def _holds_weights(file: ModelFile) -> bool:
    """Whether a constant may be the weight of a linear or convolution layer."""
    return any(len(constant.shape) > 1 for constant in _constants(file))


def _constants(file: ModelFile) -> Iterator[Constant]:
    """Initialisers and Constant nodes, those of nested graphs and local functions too."""
    values = (value for graph in file.view.graphs for value in graph.values.values())
    return (value.constant for value in values if value.constant is not None)
