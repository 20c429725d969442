"""Times several things against each other: in one process, interleaved, in random order.

A round runs each contender once, in an order drawn anew, so that whatever the machine does (a
neighbour, a falling clock) meets all alike; ratios are taken within a round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np

from bench.clock import Clock, timed
from opdf_compile.parity.latency.timing import undisturbed

LEAST_ROUNDS = 3
MOST_ROUNDS = 200

Times = dict[str, list[float]]
Progress = Callable[[str, float], None]


def race(
    contenders: Mapping[str, Callable[[], object]],
    *,
    clock: Clock,
    rng: np.random.Generator,
    rounds: int | None = None,
    budget: float = 60.0,
    progress: Progress | None = None,
) -> Times:
    """Seconds of each contender, one entry per round.

    Args:
        contenders: What is timed, by name; warmed up by the caller. One that returns a float has
            taken its own time (because it repeats itself, or leaves its preparation out).
        clock: What times them.
        rng: Draws the orders.
        rounds: How many rounds; None lets the budget decide, with `LEAST_ROUNDS` at least.
        budget: Seconds of wall time.
        progress: Called with a text and the share that is done, after each contender.
    """
    names = list(contenders)
    times: Times = {name: [] for name in names}
    begin = time.perf_counter()
    done = 0
    with undisturbed():
        while not _finished(done, rounds, time.perf_counter() - begin, budget):
            for turn, index in enumerate(rng.permutation(len(names))):
                name = names[index]
                times[name].append(timed(contenders[name], clock))
                if progress is not None:
                    share = (done + (turn + 1) / len(names)) / rounds if rounds else 0.0
                    share = share or (time.perf_counter() - begin) / budget
                    progress(f"round {done + 1}: {name}", min(1.0, share))
            done += 1
    return times


def _finished(done: int, rounds: int | None, used: float, budget: float) -> bool:
    if rounds is not None:
        return done >= rounds
    if done < LEAST_ROUNDS:
        return False
    # Another round is begun only if it is likely to end within the budget.
    return done >= MOST_ROUNDS or used * (done + 1) / done > budget
