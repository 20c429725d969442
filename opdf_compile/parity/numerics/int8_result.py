"""What was found of a quantised pair, in figures and in words."""

from __future__ import annotations

import math
from collections.abc import Mapping

from opdf_compile.artefacts import CheckData, Quantisation
from opdf_compile.parity.numerics.numerics_result import (
    Dropped,
    NumericsResult,
    OutputError,
    Precision,
    ratio,
    urgency,
)


def int8_result(
    found: tuple[OutputError, ...],
    peers: Mapping[str, OutputError],
    data: CheckData,
    how: Quantisation,
    lacks: str,
) -> NumericsResult:
    """What was found, in a result.

    Args:
        found: The candidate's outputs.
        peers: The reference's, by name.
        data: The candidate's check data.
        how: How the candidate is quantised.
        lacks: Why there is no reference to measure by; empty where there is one.
    """
    worst = max(found, key=urgency)
    peer = peers.get(worst.output)
    verdict, reason = _verdict(worst, peer, lacks)
    drops = [(e.drop, peers[e.output].drop if e.output in peers else None) for e in found]
    return NumericsResult(
        verdict=verdict,
        max_abs_error=max(error.max_abs for error in found),
        max_rel_error=max(ratio(error.max_abs, error.scale) for error in found),
        noise_floor=worst.floor_max if math.isfinite(worst.floor_max) else None,
        tolerance=worst.tolerance_max if math.isfinite(worst.tolerance_max) else None,
        samples=len(data.samples),
        outputs=found,
        worst=reason,
        precision=_precision(worst, peer, how, lacks),
        notes=(*data.notes, _about(how, lacks)),
        drops=tuple(Dropped(ours, theirs) for ours, theirs in drops if ours is not None),
    )


def _verdict(worst: OutputError, peer: OutputError | None, lacks: str) -> tuple[str, str]:
    if worst.problem:
        return "fail", str(worst)
    if worst.excess > 1:
        return "fail", _refuted(worst, peer)
    if lacks:
        return "not_checked", (
            f"{lacks}, and what int8 may cost is measured on the untouched student, quantised "
            "alike and with its check data; give that as the reference"
        )
    if worst.unjudged:
        return "not_checked", str(worst)
    return "pass", str(worst)


def _refuted(error: OutputError, peer: OutputError | None) -> str:
    """Why a quantised file is refuted, in the words of its drop."""
    if peer is None or peer.drop is None:
        return (
            f"int8 breaks the candidate: output {error.output!r} is {error.drop}, and always "
            "answering the mean would be better"
        )
    where = "" if error.rms > error.tolerance_rms else f"; its worst is {error.element}"
    return (
        f"int8 breaks the candidate and not the untouched student: output {error.output!r} is "
        f"{error.drop}, the untouched student's {peer.drop}, allowed {_allowed(error)}{where}; "
        "verify the float32 files to see whether they are right, then look for wide ranges of "
        "weights, as folded branches leave, or calibrate with other data"
    )


def _allowed(error: OutputError) -> str:
    return f"{100 * _relative_tolerance(error):.2g} %"


def _relative_tolerance(error: OutputError) -> float:
    return ratio(error.tolerance_rms, 0.0 if error.drop is None else error.drop.truth_rms)


def _precision(
    worst: OutputError, peer: OutputError | None, how: Quantisation, lacks: str
) -> Precision:
    """The relative errors of the output that is closest to its budget."""
    error = None if worst.drop is None else worst.drop.relative_rms
    if peer is None or peer.drop is None or error is None:
        return Precision(how.dtype, error=error, sentence=_about(how, lacks))
    return Precision(
        how.dtype,
        how.dtype,
        error=error,
        reference_error=peer.drop.relative_rms,
        allowed=_relative_tolerance(worst),
        sentence=(
            f"in {how.dtype} output {worst.output!r} is {worst.drop}, the untouched student's "
            f"{peer.drop}, allowed {_allowed(worst)}"
        ),
    )


def _about(how: Quantisation, lacks: str) -> str:
    told = f"the candidate is quantised ({how}): its outputs were compared with the float64 truth"
    if lacks:
        return f"{told} of the float32 student, without a budget, because {lacks}"
    return (
        f"{told} of the float32 student, and its error with that of the untouched student, "
        "quantised alike"
    )
