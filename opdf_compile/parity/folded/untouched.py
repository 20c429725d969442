"""A candidate that holds the untouched student's weights, or a reference that is the candidate.

Both look alike: two files with the same numbers. It is a fault where something says that the
student was trained as something else: a bundle's plan, or what export wrote of it into the student
and its check data. Without such a claim the same numbers are what an untrained student has, and a
file that is compared with itself is a check of `verify`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass

from opdf_compile.artefacts import (
    MANIFEST,
    PLAN,
    Constant,
    ExportFacts,
    claimed_weights,
    element_type,
    planned_weights,
)
from opdf_compile.errors import ArtefactError
from opdf_compile.files import load_json
from opdf_compile.parity.compared_files import ComparedFiles
from opdf_compile.parity.model_file import ModelFile

_MOST_BYTES = 64 << 20
# Of weights, and of the biases beside them.
_QUANTISED = ("int4", "uint4", "int8", "uint8", "int16", "uint16", "int32")


@dataclass(frozen=True)
class _Claim:
    """Which weights were to be trained as something else, and what says so."""

    weights: frozenset[str]
    source: str


def untouched(files: ComparedFiles, facts: ExportFacts) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Sentences that refute, and notes.

    Args:
        files: The candidate and its reference.
        facts: What the candidate's check data says of the export.

    Raises:
        ArtefactError: A file cannot be read.
    """
    if files.reference is None:
        return (), ()
    claim = _claim(files, facts)
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


def _claim(files: ComparedFiles, facts: ExportFacts) -> _Claim | None:
    """The first of the bundle, the file and its check data that says so."""
    file, check = files.candidate, files.check
    sources = (
        (_of_bundle(file), "the bundle has a plan"),
        (claimed_weights(file.model), f"{file.name} was exported with a plan"),
        (facts.planned, f"{'' if check is None else check.name} was exported with a plan"),
    )
    found = ((frozenset(weights), source) for weights, source in sources if weights)
    return next((_Claim(*each) for each in found), None)


def _of_bundle(file: ModelFile) -> tuple[str, ...]:
    folder = file.path.parent
    if not (folder / MANIFEST).is_file() or not (folder / PLAN).is_file():
        return ()
    try:
        return planned_weights(load_json(folder / PLAN, "a plan", most=_MOST_BYTES))
    except ArtefactError:
        return ()  # The manifest has its hash; what it should say is not this check's.


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
    external = any(tensor.external_data for tensor in candidate.model.graph.initializer)
    return not external or _numbers(candidate) == _numbers(reference)


def _unmoved(candidate: ModelFile, reference: ModelFile, claim: _Claim) -> str:
    """Say that no planned weight moved; empty where one did, or where nobody can tell."""
    both = [
        (ours[name], theirs[name])
        for ours, theirs in [(_planned(candidate, claim), _planned(reference, claim))]
        for name in ours.keys() & theirs.keys()
    ]
    if any(ours != theirs for ours, theirs in both):
        return ""
    numbers = _numbers(candidate)
    alike = bool(numbers) and numbers == _numbers(reference)
    # A tool that rewrote the files may have left some planned weights, and those may be the frozen
    # ones. Then all numbers must be the same.
    if not alike and len(both) < len(claim.weights):
        return ""
    ours, theirs = _names(candidate, reference)
    # A tool may have given all weights other names, or made others of them.
    what = f"all {len(both)} planned weights" if both else "all numbers"
    found = (
        f"the fold did not happen: {what} of {ours} are those of the untouched {theirs}, bit by "
        f"bit, although {claim.source}"
    )
    if not alike:
        return f"{found}, and other parameters moved; fold what was trained, and export that"
    every = ", and so is every other number" if both else ""
    return (
        f"{found}{every}; fold what was trained, and export that, or, where the reference is a "
        "second export of the trained student, a copy from before training"
    )


def _planned(file: ModelFile, claim: _Claim) -> Mapping[str, Hashable]:
    """Fingerprints of planned weights, which may lie transposed in the file, by their key."""
    names = {name: key for key in claim.weights for name in (key, f"{key}.T")}
    return {
        names[constant.name]: constant.fingerprint
        for constant in _constants(file)
        if constant.name in names and _may_be_trained(constant)
    }


def _numbers(file: ModelFile) -> Counter[Hashable]:
    """Fingerprints of all that may be a parameter, whatever it is called."""
    return Counter(
        constant.fingerprint
        for constant in _constants(file)
        if math.prod(constant.shape) > 1 and _may_be_trained(constant)
    )


def _constants(file: ModelFile) -> Iterator[Constant]:
    """Initialisers and the values of Constant nodes, of nested graphs too."""
    for graph in file.view.graphs:
        for value in graph.values.values():
            if value.constant is not None and value.constant.graph is graph:
                yield value.constant


def _may_be_trained(constant: Constant) -> bool:
    """Whether it is a parameter's dtype, as it is or quantised; axes and shapes are int64."""
    return "float" in (kind := element_type(constant.dtype)) or kind in _QUANTISED
