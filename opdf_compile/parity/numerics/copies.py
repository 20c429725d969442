"""What the numbers of a file say that another tool rewrote after its export.

The evidence was written for the original. Its inputs and its truth are as good for the copy, by the
names of inputs and outputs; whether the tool may have moved the numbers, the reference shows.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from opdf_compile.parity.model_file import PathLike
from opdf_compile.parity.numerics.evidence import Evidence
from opdf_compile.parity.numerics.numerics_result import NumericsResult, OutputError


def of_copy_alone(
    result: NumericsResult, ours: Evidence, theirs: Evidence | None, reference: PathLike | None
) -> NumericsResult:
    """Numbers that fit the truth of another file are no proof; numbers that do not are one."""
    other = f"its SHA-256 is not the one in {ours.check.name}"
    if result.verdict == "fail":
        sentence = (
            f"{ours.model.name} was rewritten after export ({other}), and its numbers are not "
            f"those that were exported: {result.worst}"
        )
        return replace(result, worst=sentence)
    if reference is None:
        lacks = "there is no reference that was rewritten alike"
    elif theirs is None:
        lacks = f"{Path(reference).name} has no check data"
    else:
        lacks = f"{Path(reference).name} was not"
    sentence = (
        f"{ours.model.name} was rewritten after export ({other}) and {lacks}; rewrite both with "
        "the same tool and keep their check data, or write check data for this file with "
        "opdf-compile check-data"
    )
    return NumericsResult("not_checked", samples=len(ours.data.samples), worst=sentence)


def of_copied_reference(
    result: NumericsResult, ours: Evidence, theirs: Evidence | None
) -> NumericsResult:
    """The candidate has its own evidence; only the graphs may differ for the tool's sake."""
    if theirs is None or not theirs.rewritten:
        return result
    note = (
        f"{theirs.model.name} was rewritten after export and {ours.model.name} was not: rewrite "
        "both with the same tool, or compare them as exported"
    )
    return replace(result, notes=(*result.notes, note))


def of_copies(
    result: NumericsResult, ours: Evidence, beside: tuple[OutputError, ...]
) -> NumericsResult:
    """What the verdict on two rewritten files means.

    Args:
        result: The candidate's, judged by the truth of the original.
        ours: The candidate and its evidence.
        beside: The reference's outputs against their own truth.
    """
    note = both_rewritten(ours)
    if ours.converted:
        note += (
            f"; they are {ours.data.dtype} now, and the noise floor is that of the export times "
            "the ratio of the roundoffs"
        )
    off = [error for error in beside if error.excess > 1]
    if result.verdict != "fail" or not off:
        return replace(result, notes=(*result.notes, note))
    sentence = (
        f"the reference that was rewritten too is off its own truth (its {off[0]}), so the "
        "rewriting may be what changed the numbers; rewrite both in a way that keeps them, or "
        "verify the files as exported"
    )
    return replace(result, verdict="not_checked", outputs=(), worst=sentence)


def both_rewritten(ours: Evidence) -> str:
    """What two rewritten files were judged by."""
    return (
        "both files were rewritten after export: their graphs are compared as they are now, and "
        "their numbers were judged by the inputs and the truth of the originals "
        f"({ours.check.name})"
    )
