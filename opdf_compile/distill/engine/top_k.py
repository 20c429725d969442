"""A teacher's rows of logits as their k largest, and the probability of all others together.

    kept:   log p_i for the k most probable classes i, their places, log r with r = sum of the rest
    read:   log p~_i = log p_i for those, log(r / (n - k)) for each of the others

p~ is the distribution of largest entropy that has these probabilities; the losses read it as they
would read the teacher. How far a loss moves is bounded by what is kept and by s, the student's own
probability of the classes that were left out (log-sum inequality, on p and p~ alike, because both
put r on the rest):

    |SKL(p, q)  - SKL(p~, q)|  <= r log(1 + (1 - a) s / (a r))
    |SRKL(p, q) - SRKL(p~, q)| <= s log(1 + (1 - a) r / (a s))
    |KL(p, q)   - KL(p~, q)|   <= r log(p_k / q_min) + r log(s / r)

a: the skew; p_k: the smallest probability that is kept; q_min: the student's smallest of the rest.
With a skew the bound goes to 0 with r whatever the student says; the plain KL needs q_min.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from opdf_compile.distill.recipe import Outputs

_VALUES, _PLACES, _REST, _CLASSES = "top", "places", "rest", "classes"
_PARTS = (_VALUES, _PLACES, _REST, _CLASSES)


@dataclass(frozen=True)
class TopK:
    """Keeps k logits of each row of every output.

    Attributes:
        k: How many; an output of k classes or fewer is kept whole.
    """

    k: int

    def kept(self, outputs: Outputs) -> dict[str, Tensor]:
        """What to store of outputs ``(..., classes)``; log-probabilities in float32 at least."""
        found: dict[str, Tensor] = {}
        for name, logits in outputs.items():
            if logits.shape[-1] <= self.k:
                found[name] = logits
                continue
            wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
            logs, places = wide.log_softmax(-1).sort(-1, descending=True)
            parts = (
                logs[..., : self.k],
                places[..., : self.k].to(torch.int32),
                # Of the small ones themselves: 1 - sum of the large would be rounding alone.
                logs[..., self.k :].logsumexp(-1),
                # A value per row, so that it is cut and padded along with them.
                places.new_full(places.shape[:-1], places.shape[-1], dtype=torch.int32),
            )
            names = (f"{name}/{part}" for part in _PARTS)
            found.update(zip(names, (part.contiguous() for part in parts), strict=True))
        return found

    def read(self, stored: Outputs) -> dict[str, Tensor]:
        """The outputs again, as log-probabilities ``(..., classes)``."""
        names = dict.fromkeys(name.rpartition("/")[0] or name for name in stored)
        return {name: self._one(name, stored) for name in names}

    def _one(self, name: str, stored: Outputs) -> Tensor:
        if name in stored:
            return stored[name]
        logs, places, rest, classes = (stored[f"{name}/{part}"] for part in _PARTS)
        count = int(classes.max())
        each = rest - math.log(count - self.k)
        whole = each[..., None].expand(*each.shape, count)
        return whole.scatter(-1, places.long(), logs)
