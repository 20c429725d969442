"""The candidate's score on the user's rows, against the torch model's and the reference's.

Two questions, one margin. Against the *torch* model that was exported, on its own outputs from the
check data: did the export cost anything? Against the reference, the untouched student's file: is
what ships no worse than what shipped? Training may have made the student better or worse, so
neither answers the other, and both must hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from opdf_compile.errors import InputError
from opdf_compile.parity.metric.function import Metric, Numbers
from opdf_compile.parity.metric.metric_result import MetricResult
from opdf_compile.parity.metric.one_function import is_one_function
from opdf_compile.parity.metric.paired import (
    Claim,
    PairedDifference,
    compare_draws,
    compare_rows,
)
from opdf_compile.parity.metric.resampling import Places, drawn_differences, pulls
from opdf_compile.parity.metric.row_groups import RowGroup, grouped
from opdf_compile.parity.metric.rows import UserRows, outputs_of
from opdf_compile.parity.model_file import ModelFile
from opdf_compile.parity.runtime.protocol import Device

_CANDIDATE = "candidate"


def check_metric(
    metric: Metric,
    claim: Claim,
    rows: UserRows,
    candidate: ModelFile,
    reference: ModelFile | None,
    device: Device,
) -> MetricResult:
    """Score every side on the same rows and compare.

    Args:
        metric: The user's own.
        claim: The margin, and which way is better.
        rows: The user's rows.
        candidate: The file about to ship.
        reference: The untouched student's file, if there is one.
        device: Where to run both.

    Raises:
        InputError: There is nothing to compare with, a file does not run on the rows, or the metric
            fails.
        DeviceError: The runtime cannot load a file.
    """
    torch = rows.torch_outputs
    if torch is None and reference is None:
        raise InputError(
            f"the metric has nothing to compare {candidate} with: there is no reference, and the "
            "check data does not have what the torch model computes on these rows; give "
            "reference= (--reference), or export with samples= (--samples)"
        )
    names = [port.name for port in candidate.interface.outputs]
    sides = {_CANDIDATE: outputs_of(candidate, rows.batches, device, names)}
    if torch is not None:
        sides["torch"] = torch
    if reference is not None:
        sides["reference"] = outputs_of(reference, rows.batches, device, names)
    groups = grouped(rows, sides)
    scores = {side: _scores(metric, groups, side) for side in sides}
    against = {
        side: _compared(metric, claim, groups, scores, side, alike=_alike(groups, side, candidate))
        for side in sides
        if side != _CANDIDATE
    }
    return MetricResult(
        name=metric.name,
        scores={side: float(found.mean()) for side, found in scores.items()},
        against=against,
        claim=claim,
        samples=rows.count,
        method="t" if scores[_CANDIDATE].ndim else "bootstrap",
        notes=(*_absent(rows, reference), *_open(against)),
    )


def _scores(metric: Metric, groups: Sequence[RowGroup], side: str) -> Numbers:
    """A score for each row, or one number."""
    found = [metric(*group.drawn(slice(None), side), group.rows) for group in groups]
    whole = next((n for n, scores in enumerate(found) if not scores.ndim), None)
    if whole is not None and len(found) > 1:
        raise InputError(
            f"the metric {metric.name} gave one number for {groups[whole].rows} rows, and the rows "
            f"have {len(found)} different shapes or numbers without axes, so it is called for "
            "each; wanted one number for each row"
        )
    return found[0] if whole is not None else np.concatenate(found)


def _compared(
    metric: Metric,
    claim: Claim,
    groups: Sequence[RowGroup],
    scores: Mapping[str, Numbers],
    side: str,
    *,
    alike: bool,
) -> PairedDifference:
    ours, theirs = scores[_CANDIDATE], scores[side]
    if ours.shape != theirs.shape:
        raise InputError(
            f"the metric {metric.name} gave one number for one side and several for the other, "
            "wanted the same of all"
        )
    if ours.ndim:
        return compare_rows(ours, theirs, claim, alike=alike)
    # One number is given for one group alone.
    (group,), whole = groups, float(ours - theirs)

    def difference(places: Places) -> float:
        first, second = (
            metric(*group.drawn(places, name), len(places)) for name in (_CANDIDATE, side)
        )
        return float(first.mean() - second.mean())

    draws = drawn_differences(difference, group.rows)
    pulled = pulls(whole, difference, group.rows)
    return compare_draws(whole, draws, pulled, group.rows, claim, alike=alike)


def _alike(groups: Sequence[RowGroup], side: str, candidate: ModelFile) -> bool:
    return all(
        is_one_function(group.sides[_CANDIDATE], group.sides[side], candidate.interface)
        for group in groups
    )


def _absent(rows: UserRows, reference: ModelFile | None) -> list[str]:
    """What the verdict does not rest on."""
    if rows.torch_outputs is None:
        which = "these rows" if rows.unknown == rows.count else f"{rows.unknown} of the rows"
        return [
            f"the check data does not have what the torch model computes on {which}, so the metric "
            "compares with the reference alone; export with --samples to judge the export too"
        ]
    if reference is None:
        return ["there is no reference, so the metric compares with the torch model alone"]
    return []


def _open(against: Mapping[str, PairedDifference]) -> list[str]:
    """How many rows would decide what is not decided."""
    called = {"torch": "the torch model", "reference": "the reference"}
    told = []
    for side, found in against.items():
        if found.verdict == "inconclusive":
            more = (
                f"about {found.needed:,} rows like these would decide"
                if found.needed
                else "no number of rows follows from these; give more, or a score for each row"
            )
            told.append(f"against {called[side]} it is not decided: {more}")
    return told
