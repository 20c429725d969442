"""Student's t distribution, against scipy and the tables of the textbooks."""

from __future__ import annotations

import pytest
from scipy import stats

from opdf_compile.parity.latency.student_t import t_below, t_quantile


@pytest.mark.parametrize("freedom", [1, 1.5, 2, 3, 4, 5.3, 7, 20, 63])
def test_t_agrees_with_scipy(freedom: float) -> None:
    for value in (-3.0, -0.1, 0.0, 0.5, 2.2, 7.0):
        assert t_below(value, freedom) == pytest.approx(stats.t.cdf(value, freedom), abs=1e-12)
    for probability in (0.5, 0.8, 0.975, 0.999):
        expected = stats.t.ppf(probability, freedom)
        assert t_quantile(probability, freedom) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("probability", "freedom", "wanted"),
    [
        (0.95, 1, 6.314),
        (0.95, 2, 2.920),
        (0.95, 3, 2.353),
        (0.95, 5, 2.015),
        (0.95, 12, 1.782),
        (0.995, 3, 5.841),
        (0.995, 5, 4.032),
        (0.995, 30, 2.750),
        (0.05, 5, -2.015),
    ],
)
def test_t_quantile_is_the_table_of_the_textbooks(
    probability: float, freedom: int, wanted: float
) -> None:
    assert t_quantile(probability, freedom) == pytest.approx(wanted, rel=0.01)


def test_with_many_degrees_of_freedom_t_is_normal() -> None:
    assert t_below(-0.1, 255_000) == pytest.approx(stats.t.cdf(-0.1, 255_000), abs=1e-9)
    assert t_quantile(0.995, 255_000) == pytest.approx(stats.norm.ppf(0.995), rel=1e-4)
