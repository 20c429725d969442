"""How one number for all rows moves: rows drawn again, and parts of them left out."""

from __future__ import annotations

import numpy as np
import pytest

from opdf_compile.parity.metric.resampling import drawn_differences, pulls


@pytest.mark.parametrize("rows", [2, 40, 500, 1301])
def test_the_pulls_of_a_mean_are_what_its_rows_are_off(rows: int) -> None:
    off = np.random.default_rng(0).normal(size=rows)
    seen: list[np.ndarray] = []

    def difference(places: np.ndarray) -> float:
        seen.append(places)
        return float(off[places].mean())

    found = pulls(float(off.mean()), difference, rows)
    assert len(found) == min(rows, 500)
    left_out = [np.setdiff1d(np.arange(rows), places) for places in seen]
    assert sorted(np.concatenate(left_out)) == list(range(rows))
    by_hand = [(off[part] - off.mean()).sum() for part in left_out]
    assert found == pytest.approx(by_hand, abs=1e-9)
    if rows > 500:
        # Neighbours are often alike: rows of one class, frames of one film.
        assert any(np.diff(part).max() > 1 for part in left_out)


def test_draws_are_of_all_rows_and_the_same_each_time() -> None:
    def difference(places: np.ndarray) -> float:
        assert len(places) == 30 and places.min() >= 0 and places.max() < 30
        return float(places.mean())

    first = drawn_differences(difference, 30)
    assert len(first) == 1000 and np.ptp(first) > 0
    assert np.array_equal(first, drawn_differences(difference, 30))
