"""A file that should be folded and is not: it still holds weights that folding changed or removed.

The numbers cannot tell: a model whose branches were never merged computes the same function, and
one whose adapters were dropped may come close. The evidence of a fold therefore names the matrices
that a folded file has no use for (`artefacts.fold_evidence`).
"""

from __future__ import annotations

from opdf_compile.artefacts import held_of, read_fold_record
from opdf_compile.parity.compared_files import ComparedFiles


def unfolded(files: ComparedFiles) -> tuple[str, ...]:
    """One sentence where the candidate is not folded although its evidence says so; else none.

    Raises:
        ArtefactError: The record is damaged, or the file cannot be read.
    """
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
