"""What draws weights: an autoencoder of a zoo's weights, and a diffusion model over its codes.

    w  -standardise->  x  -encoder->  z  -diffusion, given the data's features->  z'  -decoder->  w'

Each weight is standardised over the zoo, so that the decoder's zero is the zoo's mean, and each
code over the codes. Source: Soro et al. 2024 (D2NWG), arXiv 2402.18153, which codes chunks of large
networks by a variational autoencoder and learns its features of the data; here both are small, the
whole student is one vector, and the features are fixed (see `features`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from opdf_compile.distill.zoo.checkpoints import Zoo
from opdf_compile.distill.zoo.diffusion import Noising
from opdf_compile.io import fixed_randomness, seeded

_HIDDEN, _TIME = 256, 32


@dataclass(frozen=True)
class Training:
    """How long and how large.

    Attributes:
        codes: Width of a code.
        autoencoder: Steps of Adam on the autoencoder.
        diffusion: Steps of Adam on the diffusion model.
        batch: Students, or codes, in a step.
        rate: Of Adam, falling to zero along a half cosine.
    """

    codes: int = 32
    autoencoder: int = 1500
    diffusion: int = 3000
    batch: int = 64
    rate: float = 1e-3


@dataclass(frozen=True)
class Scale:
    """Standardisation of columns; one that does not vary is only centred."""

    mean: Tensor
    spread: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> Scale:
        """Of the columns of a table."""
        spread = rows.std(0, unbiased=False)
        return cls(rows.mean(0), torch.where(spread > 0, spread, torch.ones_like(spread)))

    def down(self, rows: Tensor) -> Tensor:
        """To mean 0 and spread 1."""
        return (rows - self.mean) / self.spread

    def up(self, rows: Tensor) -> Tensor:
        """Back."""
        return rows * self.spread + self.mean


class Denoiser(nn.Module):
    """The noise that is seen in codes, given the time and the features of the data.

    Shapes: codes ``(n, z)``, times ``(n,)`` as shares of T, features ``(n, c)`` -> ``(n, z)``.
    """

    def __init__(self, codes: int, features: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(codes + 2 * _TIME + features, _HIDDEN),
            nn.SiLU(),
            nn.Linear(_HIDDEN, _HIDDEN),
            nn.SiLU(),
            nn.Linear(_HIDDEN, codes),
        )

    def forward(self, codes: Tensor, times: Tensor, features: Tensor) -> Tensor:
        """The noise."""
        rates = torch.exp(torch.linspace(0, math.log(1000.0), _TIME, dtype=codes.dtype))
        angles = times.to(codes.dtype)[:, None] * rates
        found: Tensor = self.body(
            torch.cat([codes, torch.sin(angles), torch.cos(angles), features], dim=1)
        )
        return found


class Generator:
    """Draws weights for a data set; made by `trained_generator`."""

    def __init__(self, zoo: Zoo, training: Training) -> None:
        self._weights, self._features = Scale.of(zoo.vectors), Scale.of(zoo.features)
        # A drawn variance may be negative, whose root is no number: none is below the zoo's least.
        self._least: Tensor | None = None
        if zoo.variances is not None:
            nothing = torch.full_like(zoo.vectors[0], -math.inf)
            self._least = torch.where(zoo.variances, zoo.vectors.amin(0), nothing)
        self._training, self.noising = training, Noising()
        size, codes = zoo.vectors.shape[1], training.codes
        self.encoder, self.decoder = _layers(size, codes), _layers(codes, size)
        self.denoiser = Denoiser(codes, zoo.features.shape[1])
        rows = self._weights.down(zoo.vectors).float()
        given = self._features.down(zoo.features).float()
        self._fit_autoencoder(rows)
        with torch.no_grad():
            found = self.encoder(rows).double()
        self._codes = Scale.of(found)
        self._fit_denoiser(self._codes.down(found).float(), given)

    @torch.no_grad()
    def __call__(self, features: Tensor, noise: Tensor) -> Tensor:
        """Weights as vectors, ``(n, d)`` float64.

        Args:
            features: Of one data set, ``(c,)``.
            noise: ``(n, codes)``: one row draws one student.
        """
        given = self._features.down(features).float().expand(len(noise), -1)

        def seen(codes: Tensor, times: Tensor) -> Tensor:
            found: Tensor = self.denoiser(codes, times / self.noising.steps, given)
            return found

        codes = self._codes.up(self.noising.sampled(noise.float(), seen).double())
        drawn = self._weights.up(self.decoder(codes.float()).double())
        return drawn if self._least is None else torch.maximum(drawn, self._least)

    @property
    def codes(self) -> int:
        """Width of a code."""
        return self._training.codes

    def _fit_autoencoder(self, rows: Tensor) -> None:
        both = nn.ModuleList((self.encoder, self.decoder))
        for chosen in _steps(both, len(rows), self._training.autoencoder, self._training):
            batch = rows[chosen]
            yielded = self.decoder(self.encoder(batch))
            (yielded - batch).square().mean().backward()

    def _fit_denoiser(self, codes: Tensor, given: Tensor) -> None:
        training, steps = self._training, self.noising.steps
        for chosen in _steps(self.denoiser, len(codes), training.diffusion, training):
            times = torch.randint(1, steps + 1, (len(chosen),))
            noise = torch.randn(len(chosen), codes.shape[1])
            noised = self.noising.noised(codes[chosen], noise, times)
            seen = self.denoiser(noised, times / steps, given[chosen])
            (seen - noise).square().mean().backward()


def _layers(size: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(size, _HIDDEN), nn.SiLU(), nn.Linear(_HIDDEN, out))


def _steps(module: nn.Module, rows: int, steps: int, training: Training) -> Iterator[Tensor]:
    """The rows of each step; after the caller's backward, the step."""
    optimizer = torch.optim.Adam(module.parameters(), lr=training.rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        yield torch.randint(rows, (min(training.batch, rows),))
        optimizer.step()
        schedule.step()


def trained_generator(zoo: Zoo, *, seed: int = 0, training: Training | None = None) -> Generator:
    """Train on a zoo; some seconds for hundreds of students of some thousand weights.

    The same zoo and seed give the same generator, and the caller's random numbers are as before.
    """
    with seeded(seed), fixed_randomness():
        return Generator(zoo, training or Training())
