"""Structure: is the candidate's graph the reference's graph, up to names, order and sharing?

The raw files are compared, before any runtime touched them: a runtime folds an unfolded chain of
cores into one weight when it loads the file, so everything that looks at it later finds nothing.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from opdf_compile.artefacts import LinkedModel, link, read_claims, recorded_parameters
from opdf_compile.parity.model_file import ModelFile, PathLike
from opdf_compile.parity.structure.declarations import compare_interfaces, compare_opsets
from opdf_compile.parity.structure.differences import MOST_DIFFERENCES, Difference
from opdf_compile.parity.structure.frame import frame_difference
from opdf_compile.parity.structure.parameters import (
    NOTE_GUESSED,
    NOTE_WITHOUT_RECORD,
    guessed_parameters,
    mark_parameters,
    named_constants,
    note_of_lost,
    note_of_quantised,
)
from opdf_compile.parity.structure.picture import Neighbourhood
from opdf_compile.parity.structure.unreached import compare_unreached
from opdf_compile.parity.structure.walk import Walk

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True, repr=False)
class StructureResult:
    """Two linked models, how they were matched, and the verdict.

    Attributes:
        candidate: The file that is to ship.
        reference: The export of the untouched student.
        walk: The pairs of nodes.
        found: What differs: the interface, then what is nearest to the outputs; the walk gives up
            after 20.
        notes: What limits the verdict.
    """

    candidate: LinkedModel
    reference: LinkedModel
    walk: Walk
    found: tuple[Difference, ...]
    notes: tuple[str, ...] = ()

    @property
    def differences(self) -> tuple[Difference, ...]:
        """The first ones, at most 20; empty when the verdict is "pass"."""
        return self.found[:MOST_DIFFERENCES]

    @property
    def verdict(self) -> Literal["pass", "fail"]:
        """What the differences say."""
        return "fail" if self.found else "pass"

    @property
    def nodes(self) -> int:
        """Nodes of the candidate at every depth; Constant nodes are constants, not nodes."""
        return sum(1 for _ in self.candidate.nodes)

    @property
    def picture(self) -> Neighbourhood | None:
        """Both neighbourhoods of the first difference; None where there is none."""
        if not self.found:
            return None
        # A renamed input has no node to show; the first difference inside the graph has.
        inner = (d for d in self.found if d.candidate or d.reference)
        first = next(inner, self.found[0])
        sides = frame_difference(first, self.candidate, self.reference)
        return Neighbourhood(first.sentence, *sides)

    def __bool__(self) -> bool:
        """Whether the structure is the same."""
        return not self.found


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Let Python's cyclic collector wait: it would visit every linked value again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_collector_paused()
def compare_structure(
    candidate: PathLike,
    reference: PathLike,
    checks: tuple[Path | None, Path | None] = (None, None),
) -> StructureResult:
    """Compare the raw graphs of two ONNX files.

    Ignored: names of nodes and inner values, node order, which equal-valued constants share one
    initialiser, whether a constant is an initialiser or a Constant node, metadata, doc strings,
    shape annotations of inner values, IR version, and unused operator set imports. Compared:
    everything else. Constants that the exporter recorded as parameters, and the scales, zero points
    and stored weights of a quantised graph, compare by dtype and shape, all others by value too. A
    file without the record, or without some of the parameters that it names, is taken to have its
    floating-point initialisers of more than one element as parameters, and a note says so.

    Args:
        candidate: An ONNX file.
        reference: The other one.
        checks: The check data of both; it knows the parameters of a file whose metadata a tool
            dropped.

    Raises:
        ArtefactError: A file is no valid ONNX model.
    """
    files = [ModelFile.of(path) for path in (candidate, reference)]
    for file in files:
        file.require_whole()
    views = [file.view for file in files]
    records, found = _records(files, checks)
    lost = [note_of_lost(r, v, str(f)) for r, v, f in zip(records, views, files, strict=True)]
    notes = _guessing(None in records, tuple(note for note in lost if note))
    if notes:
        # One rule for both sides: a record on one side only would make every other constant a
        # parameter here and a constant there.
        records = [guessed_parameters(view) for view in views]
    for view, record in zip(views, records, strict=True):
        mark_parameters(view, record or frozenset())
    quantised = note_of_quantised(*views)
    notes = (*filter(None, [quantised]), *found, *notes)
    return compare_views(views[0], views[1], notes)


def _records(
    files: list[ModelFile], checks: tuple[Path | None, Path | None]
) -> tuple[list[frozenset[str] | None], tuple[str, ...]]:
    """The records of parameters; one that a tool dropped from the check data, or the other file."""
    records = [recorded_parameters(file.model, str(file)) for file in files]
    notes: list[str] = []
    for place, (file, check) in enumerate(zip(files, checks, strict=True)):
        if check is None or records[place] is not None:
            continue
        if known := read_claims(check)[1].parameters:
            records[place] = frozenset(known)
            notes.append(f"{file} lacks the exporter's record of parameters; {check} has it")
    ours, theirs = files
    if records[1] is None and _belongs(records[0], ours.view, theirs.view):
        # A trained ONNX student against the file that it came from, which has the same names.
        records[1] = records[0]
    elif records[0] is None and _belongs(records[1], theirs.view, ours.view):
        records[0] = records[1]
        notes.append(
            f"{ours} lacks the exporter's record of parameters; that of {theirs} was taken, whose "
            "names, dtypes and shapes it has"
        )
    return records, tuple(notes)


def _guessing(without: bool, lost: tuple[str, ...]) -> tuple[str, ...]:
    """Why the records cannot say what a parameter is, and what follows; empty where they can."""
    if without:
        return (*lost, NOTE_WITHOUT_RECORD)
    if len(lost) == 1:
        lost = (f"{lost[0]}; the other file was not: rewrite both with the same tool",)
    return (*lost, NOTE_GUESSED) if lost else ()


def _belongs(record: frozenset[str] | None, own: LinkedModel, other: LinkedModel) -> bool:
    """Whether a file's record holds for the other one too: same names, dtypes and shapes."""
    if not record:
        return record is not None
    ours, theirs = named_constants(own), named_constants(other)
    return all(name in ours and ours.get(name) == theirs.get(name) for name in record)


def compare_models(
    candidate: onnx.ModelProto, reference: onnx.ModelProto, folder: str = ""
) -> StructureResult:
    """Compare two models of one folder whose constants must all agree by value."""
    return compare_views(link(candidate, folder), link(reference, folder))


def compare_views(
    candidate: LinkedModel, reference: LinkedModel, notes: tuple[str, ...] = ()
) -> StructureResult:
    """Compare two linked models: interface, operator sets, reached nodes, then the unreached."""
    walk = Walk()
    interface = compare_interfaces(candidate, reference) + compare_opsets(candidate, reference)
    walk.enter(candidate.main, reference.main)
    walk.run()
    unreached = compare_unreached(candidate, reference, walk)
    found = (*interface, *walk.differences, *unreached)
    return StructureResult(candidate, reference, walk, found, notes)
