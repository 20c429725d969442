"""How the difference of two numbers for all rows moves with the rows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from opdf_compile.parity.metric.function import Numbers

Places = npt.NDArray[np.int64]
# Candidate - baseline on some of the rows.
Difference = Callable[[Places], float]

SEED = 0
_DRAWS = 1000
# Parts left out: with fewer of them a part holds more rows, and the interval is wider.
_PARTS = 500


def drawn_differences(difference: Difference, rows: int) -> Numbers:
    """The difference on rows that are drawn with replacement, from a fixed seed."""
    random = np.random.default_rng(SEED)
    places = (random.integers(rows, size=rows) for _ in range(_DRAWS))
    return np.fromiter(map(difference, places), np.float64, _DRAWS)


def pulls(whole: float, difference: Difference, rows: int) -> Numbers:
    """How far each part of the rows pulls the difference: (n - n[g]) (d - d[-g]).

    Args:
        whole: Candidate - baseline on all rows, d.
        difference: The same on some of them.
        rows: How many rows there are, n. Each is a part; of more than 500 rows parts are drawn,
            because neighbours may be alike.
    """
    order = np.random.default_rng(SEED).permutation(rows)
    found = []
    for part in np.array_split(order, min(rows, _PARTS)):
        rest = np.setdiff1d(order, part, assume_unique=True)
        found.append(len(rest) * (whole - difference(rest)))
    return np.array(found)
