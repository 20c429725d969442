"""Is the candidate as fast as the reference? Paired, interleaved, randomised, with a control.

`bench.py` makes the sessions and times rounds on them, `race.py` says how long to go on,
`ratio_interval.py` turns rounds into intervals and intervals into a verdict. This file joins them.

How often this errs is measured: see docs/method.md, "Latency".
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from opdf_compile.errors import InputError
from opdf_compile.parity.latency.bench import SessionBench, file_bytes, shapes_of
from opdf_compile.parity.latency.inputs import latency_inputs
from opdf_compile.parity.latency.latency_result import LatencyResult, SessionRole, ShapeResult
from opdf_compile.parity.latency.memory import largest
from opdf_compile.parity.latency.race import SEED, Progress, Question, Race, Track
from opdf_compile.parity.latency.ratio_interval import (
    LATENCY_RULES,
    Interval,
    LatencyRule,
    bootstrap,
)
from opdf_compile.parity.latency.shape_option import (
    Declared,
    Shape,
    batch_size,
    declared_inputs,
    shape_text,
)
from opdf_compile.parity.model_file import ModelFile, PathLike
from opdf_compile.parity.runtime.protocol import Device

__all__ = ["SEED", "Progress", "check_budget", "measure_latency"]

_SIDES: tuple[SessionRole, SessionRole] = ("reference", "candidate")
# The first group pays for what the process loads once; there are always more groups.
_FIRST_IS_ODD = 1
_WORST_FIRST = ("fail", "inconclusive", "pass")


def measure_latency(
    candidate: PathLike,
    reference: PathLike,
    device: Device,
    *,
    margin: float,
    rule: LatencyRule = "no-slower",
    budget: float = 60.0,
    check: Path | None = None,
    shapes: Sequence[Mapping[str, Shape]] | None = None,
    threads: int | None = None,
    seed: int = SEED,
    progress: Progress | None = None,
) -> LatencyResult:
    """Measure candidate / reference and decide.

    Args:
        candidate: The ONNX file about to ship.
        reference: The ONNX file that it must not be slower than.
        device: Where to run.
        margin: Allowed relative difference, above 0 and below 1.
        rule: "no-slower" (one-sided) or "equal" (both sides).
        budget: Seconds to spend; a clear verdict ends earlier, the minimum of groups may take more.
        check: Check data, whose first sample gives the inputs; None draws them.
        shapes: Shapes of some or all inputs, one mapping for each measurement; None takes the
            check data's. All of them must pass.
        threads: Threads within one operator; None leaves the choice to the runtime.
        seed: Fixes the orders, the drawn inputs and the resampling.
        progress: Called with a sentence and the share of the budget that is used.

    Raises:
        ArtefactError: A file cannot be read.
        DeviceError: The provider cannot run a model.
        InputError: An argument is out of range, or a model does not run on the inputs.
    """
    check_budget(budget)
    if rule not in LATENCY_RULES:
        raise InputError(f"latency is {rule!r}; give {' or '.join(LATENCY_RULES)}")
    began = time.perf_counter()
    files: dict[SessionRole, ModelFile] = {
        "candidate": ModelFile.of(candidate),
        "reference": ModelFile.of(reference),
    }
    # Checked here, so that making a session finds it done and its time is the runtime's.
    for file in files.values():
        file.require_whole()
    declared = declared_inputs(files["candidate"].model)
    rng = np.random.default_rng(seed)
    rows: Sequence[Mapping[str, Shape] | None] = shapes or [None]
    inputs = [
        latency_inputs(declared, check, rng, asked=asked, model=files["candidate"].path)
        for asked in rows
    ]
    bench = SessionBench({**files, "control": files["reference"]}, device, inputs, threads, rng)
    question = Question(margin, rule, len(inputs))
    race = Race(bench, question, budget, progress or (lambda text, share: None), began=began)
    ended = race.run()
    bench.close()
    found = tuple(
        _shape_result(bench, shape, track, question, declared)
        for shape, track in enumerate(race.tracks)
    )
    sizes = {side: file_bytes(files[side]) for side in _SIDES}
    return _result(
        bench, question, found, race.groups, sizes, (ended, *_notes(race, found, margin))
    )


def check_budget(budget: float) -> None:
    """Refuse a budget that is no positive number of seconds.

    Raises:
        InputError: The sentence says what was given.
    """
    if isinstance(budget, bool) or not isinstance(budget, (int, float)):
        raise InputError(f"budget is {budget!r}; give seconds above 0")
    if not (math.isfinite(budget) and budget > 0):
        raise InputError(f"budget is {budget:g}; give seconds above 0")


def _shape_result(
    bench: SessionBench, shape: int, track: Track, question: Question, declared: Sequence[Declared]
) -> ShapeResult:
    spreads = track.spreads()
    interval, control = (spread.interval() for spread in spreads)
    seconds = track.table()
    milliseconds = {side: float(np.median(seconds[side])) * 1e3 for side in _SIDES}
    sizes = shapes_of(bench.inputs[shape])
    samples = batch_size(sizes, declared)
    return ShapeResult(
        shape=sizes,
        verdict=question.verdict(spreads),
        ratio=interval.ratio,
        ci_low=interval.low,
        ci_high=interval.high,
        control=control,
        sessions=len(track.groups),
        rounds=track.rounds,
        reference_ms=milliseconds["reference"],
        candidate_ms=milliseconds["candidate"],
        throughput={
            side: None if samples is None else samples / milliseconds[side] * 1e3 for side in _SIDES
        },
        memory={side: bench.memory(side, shape) for side in _SIDES},
        seconds=seconds,
    )


def _result(
    bench: SessionBench,
    question: Question,
    found: tuple[ShapeResult, ...],
    groups: int,
    sizes: Mapping[SessionRole, int],
    notes: tuple[str, ...],
) -> LatencyResult:
    """The whole result; under the contract's keys it repeats the worst shape."""
    worst = min(found, key=_badness)
    return LatencyResult(
        verdict=worst.verdict,
        device=bench.device.name,
        provider=bench.device.provider,
        ratio=worst.ratio,
        ci_low=worst.ci_low,
        ci_high=worst.ci_high,
        margin=question.margin,
        rule=question.rule,
        control=worst.control,
        sessions=groups,
        rounds=worst.rounds,
        reference_ms=worst.reference_ms,
        candidate_ms=worst.candidate_ms,
        per_shape=found,
        throughput=worst.throughput,
        memory={side: largest([shape.memory[side] for shape in found]) for side in _SIDES},
        cold_start_ms={
            side: float(np.median(bench.cold[side][_FIRST_IS_ODD:])) * 1e3 for side in _SIDES
        },
        cold_start=_cold_start(bench),
        file_bytes={side: sizes[side] for side in _SIDES},
        seconds=worst.seconds,
        notes=notes,
    )


def _badness(shape: ShapeResult) -> tuple[int, float]:
    """Sorts the worst shape first: by its verdict, then by how much slower it may be."""
    return _WORST_FIRST.index(shape.verdict), -shape.ci_high


def _cold_start(bench: SessionBench) -> Interval:
    candidate, reference = (
        np.log(bench.cold[role][_FIRST_IS_ODD:]) for role in ("candidate", "reference")
    )
    return bootstrap((candidate - reference)[:, None], np.random.default_rng(SEED)).interval()


def _notes(race: Race, found: Sequence[ShapeResult], margin: float) -> list[str]:
    """What a reader of the verdict should know, beside how the race ended."""
    runs = ", ".join(str(track.runs) for track in race.tracks)
    notes = [f"{runs} run{'' if runs == '1' else 's'} per block"]
    for shape in found:
        where = f" at {shape_text(shape.shape)}" if len(found) > 1 else ""
        if shape.verdict != "inconclusive":
            continue
        if not shape.control.fits(margin):
            notes.append(
                f"the reference against itself gave {shape.control.low:.3f} to "
                f"{shape.control.high:.3f}{where}, which does not fit the margin of {margin:g}: "
                "quieten the machine, raise the budget or the margin"
            )
        elif len(found) > 1 and shape.ci_low > 1.0 + margin:
            notes.append(
                f"the ratio{where} is beyond the margin at 90 %, but not at the level that "
                f"{len(found)} shapes share: raise the budget"
            )
    return notes
