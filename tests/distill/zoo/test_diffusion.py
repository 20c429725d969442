"""Diffusion against closed forms: a Gaussian's noise is known exactly, and so is what is drawn."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from opdf_compile.distill.zoo import Noising


def test_the_schedule_falls_from_one_to_next_to_nothing() -> None:
    kept = Noising(100).kept
    assert float(kept[0]) == 1 and len(kept) == 101
    assert bool((kept.diff() <= 0).all()) and 0 < float(kept[-1]) <= 1e-4
    angle = (50 / 100 + 0.008) / 1.008 * math.pi / 2
    start = 0.008 / 1.008 * math.pi / 2
    assert float(kept[50]) == pytest.approx((math.cos(angle) / math.cos(start)) ** 2)


def test_noise_has_the_moments_of_its_time() -> None:
    """Mean sqrt(a) m, variance a s^2 + 1 - a, of 200,000 draws: five standard errors."""
    noising, count = Noising(50), 200_000
    generator = torch.Generator().manual_seed(0)
    sample = 3 + 2 * torch.randn(count, 1, generator=generator, dtype=torch.float64)
    noise = torch.randn(count, 1, generator=generator, dtype=torch.float64)
    for time in (0, 10, 30, 50):
        found = noising.noised(sample, noise, torch.full((count,), time))
        a = float(noising.kept[time])
        variance = 4 * a + 1 - a
        assert float(found.mean()) == pytest.approx(
            3 * math.sqrt(a), abs=5 * math.sqrt(variance / count)
        )
        assert float(found.var()) == pytest.approx(variance, rel=5 * math.sqrt(2 / count))


@pytest.mark.parametrize(("mean", "spread"), [(0.0, 1.0), (3.0, 0.5), (-2.0, 2.0)])
def test_the_exact_noise_draws_the_distribution(mean: float, spread: float) -> None:
    """Of N(m, s^2) the noise in z_t is (1 - a)^(1/2) (z_t - a^(1/2) m) / (a s^2 + 1 - a).

    The sampler's path is then linear in z_T, and in the limit of many steps its end has the place
    in N(m, s^2) that z_T has in its own distribution; the error falls as one over their number.
    """
    noise = torch.linspace(-2, 2, 41, dtype=torch.float64)[:, None]
    errors = []
    for steps in (250, 500, 1000):
        noising = Noising(steps)

        def seen(codes: Tensor, times: Tensor, noising: Noising = noising) -> Tensor:
            a = noising.kept[times][:, None]
            exact: Tensor = (1 - a).sqrt() * (codes - a.sqrt() * mean) / (a * spread**2 + 1 - a)
            return exact

        found = noising.sampled(noise, seen)
        last = float(noising.kept[-1])
        start = (noise - math.sqrt(last) * mean) / math.sqrt(last * spread**2 + 1 - last)
        errors.append(float((found - (mean + spread * start)).abs().max()))
    assert errors[-1] < 0.02
    assert errors[1] < 0.6 * errors[0] + 1e-9 and errors[2] < 0.6 * errors[1] + 1e-9


def test_a_wrong_noise_draws_something_else() -> None:
    """The check above can fail."""
    noise = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    found = Noising(500).sampled(noise, lambda codes, times: 0.5 * codes)
    assert float((found - (3 + 0.5 * noise)).abs().max()) > 0.5
