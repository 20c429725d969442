"""What numerics says of the user's rows: it judges those whose truth is in the check data.

The reference has other weights, so that its outputs are no truth for the candidate's: on rows
without one, candidate against reference is a question for a metric, and never numerics.
"""

from __future__ import annotations

from dataclasses import replace

from opdf_compile.parity.metric.rows import UserRows
from opdf_compile.parity.numerics.numerics_result import NumericsResult


def with_user_rows(found: NumericsResult, rows: UserRows, *, scored: bool) -> NumericsResult:
    """The verdict on the numbers, with what it covers of the user's rows.

    Args:
        found: The verdict on the check data.
        rows: The user's rows.
        scored: Whether a metric judges them.

    Returns:
        A pass becomes "not_checked" where rows were given that nothing judges.
    """
    if found.verdict == "not_checked" or not rows.count:
        return found
    if not rows.unknown:
        note = f"the check data has the truth of all {rows.count} rows of the samples"
        return replace(found, notes=(*found.notes, note))
    lacks = (
        f"{rows.unknown} of the {rows.count} rows of the samples have no truth in the check data, "
        "and the reference's outputs are none, since its weights differ"
    )
    if scored or found.verdict == "fail":
        judged = "the metric alone judges them" if scored else "nothing judges them"
        note = f"{lacks}: {judged}; export with --samples to have their truth"
        return replace(found, notes=(*found.notes, note))
    worst = f"{lacks}; export with --samples, or give a metric to judge them by"
    return NumericsResult("not_checked", samples=found.samples, worst=worst)
