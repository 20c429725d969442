"""Gaussian diffusion: how noise is added, and one step of taking it away.

    z_t = sqrt(a_t) z_0 + sqrt(1 - a_t) e          e ~ N(0, I), a_0 = 1 > a_1 > .. > a_T near 0

    z_s = sqrt(a_s) z_0^ + sqrt(1 - a_s) e^        s < t, e^ the noise that a network sees in z_t,
    z_0^ = (z_t - sqrt(1 - a_t) e^) / sqrt(a_t)    what it takes the sample for

The second is the deterministic sampler: the same noise gives the same sample. Sources: Ho, Jain,
Abbeel 2020 (DDPM), arXiv 2006.11239; Song, Meng, Ermon 2020 (DDIM), arXiv 2010.02502; the schedule
of Nichol and Dhariwal 2021, arXiv 2102.09672, equation 17.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

_OFFSET = 0.008
# Below, z_0 would be a division by next to nothing.
_LEAST = 1e-4


@dataclass(frozen=True)
class Noising:
    """A schedule.

    Attributes:
        steps: T.
    """

    steps: int = 200

    @cached_property
    def kept(self) -> Tensor:
        """a_0 .. a_T, ``(T + 1,)`` float64: the share of the sample's variance that is left."""
        share = torch.arange(self.steps + 1, dtype=torch.float64) / self.steps
        angle = (share + _OFFSET) / (1 + _OFFSET) * math.pi / 2
        found = torch.cos(angle).square()
        return (found / found[0]).clamp_min(_LEAST)

    def noised(self, sample: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """z_t of each row.

        Args:
            sample: z_0, ``(n, d)``.
            noise: e, ``(n, d)``.
            times: t, ``(n,)`` whole numbers from 0 to T.
        """
        kept = self.kept[times].to(sample.dtype)[:, None]
        return kept.sqrt() * sample + (1 - kept).sqrt() * noise

    def sampled(self, noise: Tensor, seen: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """z_0 from z_T by T deterministic steps.

        Args:
            noise: z_T, ``(n, d)``.
            seen: e^ of (z_t, t of each row).
        """
        sample = noise
        for time in range(self.steps, 0, -1):
            now, then = (float(self.kept[at]) for at in (time, time - 1))
            times = torch.full((len(sample),), time)
            guess = seen(sample, times)
            origin = (sample - math.sqrt(1 - now) * guess) / math.sqrt(now)
            sample = math.sqrt(then) * origin + math.sqrt(1 - then) * guess
        return sample
