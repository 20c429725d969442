"""Values for one drawn sample, by dtype, range and what the input is for.

| input | values |
|---|---|
| floating | normal with the example's mean and spread, cut to its range |
| integer that indexes a table | any row of it; ids of a meaning of their own stay in place |
| mask: 0 and 1 | ones, then padding along the last axis, at least half of it ones |
| other integers, booleans | the example's own values |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opdf_compile.io.evidence.id_ranges import IdRange


@dataclass(frozen=True)
class Draw:
    """How one sample is drawn.

    Attributes:
        random: Where the numbers come from.
        ranges: What the integer inputs that index something may hold.
        padded: Whether a mask of ones gets some padding.
        whole: Whether every mask is all ones, also where the example has padding.
    """

    random: np.random.Generator
    ranges: Mapping[str, IdRange]
    padded: bool = False
    whole: bool = False

    def like(self, name: str, leaf: Tensor, shape: tuple[int, ...]) -> Tensor:
        """A tensor of another shape with values such as the example's."""
        values = leaf.detach().cpu()
        if values.dtype.is_complex:
            parts = self.like(name, torch.view_as_real(values), (*shape, 2))
            return torch.view_as_complex(parts).to(leaf.device)
        if values.numel() == 0:
            return torch.zeros(shape, dtype=leaf.dtype, device=leaf.device)
        if values.dtype.is_floating_point:
            drawn = self._floats(values.double().numpy(), shape)
        else:
            drawn = self._integers(name, values, shape)
        return torch.from_numpy(np.asarray(drawn)).to(dtype=leaf.dtype, device=leaf.device)

    def _floats(self, values: Any, shape: tuple[int, ...]) -> Any:
        finite = values[np.isfinite(values)]
        if finite.size == 0:
            return self.random.choice(values.reshape(-1), size=shape)
        mean, spread = float(finite.mean()), float(finite.std())
        if spread == 0.0:
            # A constant example says nothing about the range.
            return self.random.normal(mean, 1.0, size=shape)
        drawn = self.random.normal(mean, spread, size=shape)
        return np.clip(drawn, finite.min(), finite.max())

    def _integers(self, name: str, values: Tensor, shape: tuple[int, ...]) -> Any:
        span = self.ranges.get(name)
        if span is not None and span.low <= int(values.min()) and int(values.max()) <= span.high:
            return self._ids(span, values.numpy(), shape)
        if "mask" in name.lower() and self._is_padding(values, len(shape)):
            return self._prefixes(shape)
        return self.random.choice(values.numpy().reshape(-1), size=shape)

    def _ids(self, span: IdRange, values: Any, shape: tuple[int, ...]) -> Any:
        """Any rows of the table; the example's ids of a meaning of their own keep their places."""
        drawn = self.random.integers(span.low, span.high + 1, size=shape)
        if not span.special:
            return drawn
        special = sorted(span.special)
        # The gaps of the special ids are closed by shifting what lies above them.
        drawn = self.random.integers(span.low, span.high + 1 - len(special), size=shape)
        for number in special:
            drawn = drawn + (drawn >= number)
        if values.shape[1:] != tuple(shape[1:]):
            return drawn
        rows = np.resize(values, shape) if values.ndim else values
        return np.where(np.isin(rows, special), rows, drawn)

    def _is_padding(self, values: Tensor, rank: int) -> bool:
        """Whether a mask follows the rule: if the example has padding, or some was asked for."""
        ones = values == 1
        binary = bool(((values == 0) | ones).all()) and bool(ones.any())
        mixed = binary and bool((values == 0).any())
        wanted = mixed or (self.padded and not self.whole and bool(ones.all()))
        return rank >= 2 and wanted

    def _prefixes(self, shape: tuple[int, ...]) -> Any:
        length = shape[-1]
        low = length if self.whole else (length + 1) // 2
        kept = self.random.integers(low, length + 1, size=(*shape[:-1], 1))
        return (np.arange(length) < kept).astype(np.int64)
