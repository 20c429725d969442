"""How much slower a pair truly is, and how many columns of an added product make it so.

This is a second way of measuring, beside verify's own, and a longer one: new sessions for every
group, one run of each side in random order, the median of the log-ratios of a group, and the
interval of the median over groups.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bench.intervals import median_interval

from opdf_compile.parity.latency.timing import undisturbed, warm_up
from opdf_compile.parity.runtime.protocol import BoundModel, Device

LEVEL = 0.95
_GROUP_SECONDS = 1.5
_LEAST_GROUPS, _LEAST_ROUNDS = 4, 20
# What is spent on the search, as shares of the seconds for the truth.
_SEARCH = 0.25
_MOST_COLUMNS = 4096

Measure = Callable[[int, float], "Truth"]


@dataclass(frozen=True)
class Truth:
    """A ratio that was measured at length.

    Attributes:
        ratio: Candidate / reference.
        ci_low: Lower end of its 95 % interval.
        ci_high: Upper end.
        groups: Pairs of sessions.
        rounds: Runs of each session, over all groups.
        reference_ms: Median of the reference's runs.
        seconds: That it took.
        columns: Of the added product, None without one.
        wanted: The ratio that was aimed at.
    """

    ratio: float
    ci_low: float
    ci_high: float
    groups: int
    rounds: int
    reference_ms: float
    seconds: float
    columns: int | None = None
    wanted: float | None = None

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self)


def measure_truth(
    candidate: Path,
    reference: Path,
    device: Device,
    inputs: dict[str, Any],
    *,
    seconds: float,
    threads: int | None,
    rng: np.random.Generator,
) -> Truth:
    """Measure one pair for so many seconds."""
    began = time.perf_counter()
    ratios: list[float] = []
    times: list[float] = []
    rounds = 0
    while len(ratios) < _LEAST_GROUPS or time.perf_counter() - began < seconds:
        pair = [candidate, reference]
        made: dict[Path, BoundModel] = {}
        for index in rng.permutation(2):
            loaded = device.runtime.load(pair[index], device, threads=threads)
            made[pair[index]] = loaded.bind(inputs)
        logs, runs = _group(made[candidate], made[reference], rng)
        ratios.append(float(np.exp(np.median(logs))))
        times += runs
        rounds += len(runs)
    found = median_interval(ratios, rng, level=LEVEL)
    spent = time.perf_counter() - began
    middle = float(np.median(times)) * 1e3
    return Truth(found.ratio, found.low, found.high, len(ratios), rounds, middle, spent)


def _group(
    candidate: BoundModel, reference: BoundModel, rng: np.random.Generator
) -> tuple[list[float], list[float]]:
    """Log-ratios of single runs, and seconds of the reference's."""
    for session in (candidate, reference):
        warm_up(session)
    logs: list[float] = []
    times: list[float] = []
    began = time.perf_counter()
    with undisturbed():
        while len(logs) < _LEAST_ROUNDS or time.perf_counter() - began < _GROUP_SECONDS:
            seconds = [0.0, 0.0]
            for index in rng.permutation(2):
                session = (candidate, reference)[index]
                session.run()  # Brings its data back into the caches.
                seconds[index] = session.seconds(1)
            logs.append(float(np.log(seconds[0] / seconds[1])))
            times.append(seconds[1])
    return logs, times


def search(measure: Measure, wanted: float, first: int, seconds: float) -> tuple[int, Truth]:
    """The number of columns whose slowdown comes nearest to the wanted one, and its truth.

    The cost of a product is nearly linear in its columns, so that two points and one secant do.

    Args:
        measure: Gives the truth for so many columns within so many seconds.
        wanted: The slowdown, 0.1 for 10 %.
        first: Columns to begin with.
        seconds: For the truth of what was found.
    """
    low, high = 1, first
    costs = {columns: measure(columns, seconds * _SEARCH).ratio - 1 for columns in (low, high)}
    while costs[high] < wanted and high < _MOST_COLUMNS:
        low, high = high, high * 4
        costs[high] = measure(high, seconds * _SEARCH).ratio - 1
    guess = _secant(costs, low, high, wanted)
    costs[guess] = measure(guess, seconds * _SEARCH).ratio - 1
    # Once more, from the side of the guess on which the wanted slowdown lies.
    side = high if costs[guess] < wanted else low
    left, right = sorted((guess, side))
    found = _secant(costs, left, right, wanted) if left != right else guess
    return found, measure(found, seconds)


def _secant(costs: dict[int, float], low: int, high: int, wanted: float) -> int:
    rise = costs[high] - costs[low]
    if rise <= 0:
        return high
    share = (wanted - costs[low]) / rise
    return max(1, round(low + min(1.0, max(0.0, share)) * (high - low)))
