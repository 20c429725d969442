"""The candidate's score on the user's rows, against the torch model's and the reference's.

Two questions, one margin. Against the *torch* model that was exported, on its own outputs from the
check data: did the export cost anything? Against the reference, the untouched student's file: is
what ships no worse than what shipped? Training may have made the student better or worse, so
neither answers the other, and both must hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from opdf_compile.errors import InputError
from opdf_compile.parity.metric.function import Metric, Numbers
from opdf_compile.parity.metric.metric_result import MetricResult
from opdf_compile.parity.metric.paired import (
    Claim,
    PairedDifference,
    compare_draws,
    compare_rows,
)
from opdf_compile.parity.metric.rows import UserRows, outputs_of
from opdf_compile.parity.model_file import ModelFile
from opdf_compile.parity.runtime.protocol import Device

Outputs = Mapping[str, Any]

SEED = 0
_DRAWS = 1000
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
    groups = _groups(rows, sides)
    scores = {side: _scores(metric, groups, side) for side in sides}
    against = {
        side: _compared(metric, claim, groups, scores, side) for side in sides if side != _CANDIDATE
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


class _Group:
    """Rows of equal shapes, and what each side computes on them."""

    def __init__(self, samples: Outputs, sides: Mapping[str, Outputs], rows: int) -> None:
        self.samples, self.sides, self.rows = samples, sides, rows

    def drawn(self, places: Numbers | Any, side: str) -> tuple[Outputs, Outputs]:
        """A side's outputs and the samples at some rows; new arrays, which a metric may change."""
        return _taken(self.sides[side], places), _taken(self.samples, places)


def _groups(rows: UserRows, sides: Mapping[str, Sequence[Outputs]]) -> list[_Group]:
    """Batches whose arrays fit together, joined; of outputs those that all batches have."""
    sides = {side: _common(outputs) for side, outputs in sides.items()}
    members: dict[tuple[Any, ...], list[int]] = {}
    for place, batch in enumerate(rows.batches):
        arrays = [batch.inputs, batch.labels, *(outputs[place] for outputs in sides.values())]
        shapes = tuple((n, np.shape(a)[1:]) for held in arrays for n, a in sorted(held.items()))
        members.setdefault(shapes, []).append(place)
    return [
        _Group(
            _joined([{**rows.batches[p].inputs, **rows.batches[p].labels} for p in places]),
            {side: _joined([outputs[p] for p in places]) for side, outputs in sides.items()},
            sum(rows.batches[p].rows for p in places),
        )
        for places in members.values()
    ]


def _common(outputs: Sequence[Outputs]) -> list[Outputs]:
    # An axis that is no batch may be as long as a batch, and the last batch may be shorter.
    names = set.intersection(*(set(found) for found in outputs))
    return [{name: found[name] for name in found if name in names} for found in outputs]


def _joined(parts: Sequence[Outputs]) -> dict[str, Any]:
    return {
        name: np.concatenate([part[name] for part in parts]) if np.ndim(first) else first
        for name, first in parts[0].items()
    }


def _taken(arrays: Outputs, places: Any) -> dict[str, Any]:
    return {
        name: np.array(array[places]) if np.ndim(array) else array for name, array in arrays.items()
    }


def _scores(metric: Metric, groups: Sequence[_Group], side: str) -> Numbers:
    """A score for each row, or one number."""
    found = [metric(*group.drawn(slice(None), side), group.rows) for group in groups]
    whole = next((n for n, scores in enumerate(found) if not scores.ndim), None)
    if whole is not None and len(found) > 1:
        raise InputError(
            f"the metric {metric.name} gave one number for {groups[whole].rows} rows, and the rows "
            f"have {len(found)} different shapes, so it is called for each shape; wanted one "
            "number for each row"
        )
    return found[0] if whole is not None else np.concatenate(found)


def _compared(
    metric: Metric,
    claim: Claim,
    groups: Sequence[_Group],
    scores: Mapping[str, Numbers],
    side: str,
) -> PairedDifference:
    ours, theirs = scores[_CANDIDATE], scores[side]
    if ours.shape != theirs.shape:
        raise InputError(
            f"the metric {metric.name} gave one number for one side and several for the other, "
            "wanted the same of all"
        )
    alike = all(_alike(group.sides[_CANDIDATE], group.sides[side]) for group in groups)
    if ours.ndim:
        return compare_rows(ours, theirs, claim, alike=alike)
    draws = _drawn_differences(metric, groups[0], side)
    return compare_draws(float(ours - theirs), draws, groups[0].rows, claim, alike=alike)


def _drawn_differences(metric: Metric, group: _Group, side: str) -> Numbers:
    """Candidate - baseline on rows that are drawn with replacement, the same for both."""
    random = np.random.default_rng(SEED)
    found = np.empty(_DRAWS)
    for number in range(_DRAWS):
        places = random.integers(group.rows, size=group.rows)
        ours, theirs = (
            metric(*group.drawn(places, name), group.rows) for name in (_CANDIDATE, side)
        )
        found[number] = float(ours.mean() - theirs.mean())
    return found


def _alike(ours: Outputs, theirs: Outputs) -> bool:
    """Whether two sides compute one function there: half of the digits are left to rounding."""
    return ours.keys() == theirs.keys() and all(_near(ours[n], theirs[n]) for n in ours)


def _near(ours: Any, theirs: Any) -> bool:
    if ours.shape != theirs.shape or ours.dtype.kind != theirs.dtype.kind:
        return False
    if ours.dtype.kind != "f":
        return bool((ours == theirs).all())
    largest = float(np.abs(theirs[np.isfinite(theirs)]).max(initial=0.0))
    room = float(np.finfo(theirs.dtype).eps) ** 0.5 * largest
    return bool(np.allclose(ours, theirs, rtol=0.0, atol=room, equal_nan=True))


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
