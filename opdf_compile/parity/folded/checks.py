"""What is asked of a candidate whatever it computes: was it folded, and is it not the reference?

The numbers cannot tell: a model whose branches were never merged, or whose cores are still there,
computes the same function, and one whose adapters were dropped may come close.
"""

from __future__ import annotations

from opdf_compile.artefacts import ExportFacts, FoldRecord, held_of, read_claims
from opdf_compile.parity.compared_files import ComparedFiles
from opdf_compile.parity.folded.claims import claim_of_plan
from opdf_compile.parity.folded.expanded import still_expanded
from opdf_compile.parity.folded.untouched import untouched


def fold_faults(files: ComparedFiles) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Sentences that refute a candidate that was not folded, and notes.

    Raises:
        ArtefactError: A record is damaged, or a file cannot be read.
    """
    record, facts = (None, ExportFacts()) if files.check is None else read_claims(files.check)
    claim = claim_of_plan(files, facts)
    planned = frozenset() if claim is None else claim.weights
    expanded, expanded_notes = still_expanded(files.candidate, files.reference, planned)
    unmoved, unmoved_notes = untouched(files, claim)
    return (
        (*_still_held(files, record), *expanded, *unmoved),
        (*expanded_notes, *unmoved_notes),
    )


def _still_held(files: ComparedFiles, record: FoldRecord | None) -> tuple[str, ...]:
    held = [] if record is None else _held(files, record)
    if record is None or not held:
        return ()
    more = f" and {len(held) - 1} more" if len(held) > 1 else ""
    return (
        f"the fold did not happen: {files.candidate.name} still holds {held[0]!r}{more} as before, "
        f"which folding by {record.by} changes; export the folded model",
    )


def _held(files: ComparedFiles, record: FoldRecord) -> list[str]:
    return held_of(record, files.candidate.model, str(files.candidate.path.parent))
