"""When a student writes: more often as its loss on the data gets worse (DistiLLM's scheduler).

    phi = 0, L_ref = validation loss at the start
    each epoch                if L_val >= L_ref + e:  phi <- min(1, phi + d),  L_ref <- L_val
    step t of T, u ~ U(0, 1)  u < phi (1 - t/T), or u < phi and the buffer is not full:
                                  the student writes, into the buffer too
                              else u < phi:  from the buffer
                              else:          from the data

e = d = 0.1, a buffer of 1,000 pairs. Source: Ko, Kim, Chen, Yun 2024 (DistiLLM), arXiv 2402.03898,
section 3.2 and algorithm 1; constants and the order of the conditions as in the authors' code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Choice = Literal["data", "student", "buffer"]


@dataclass
class AdaptivePolicy:
    """The scheduler's state.

    Attributes:
        tolerance: e above, in nats per token.
        rise: d above.
        phi: The share of steps that do not train on the data.
        reference: L_ref above; None before the first validation.
    """

    tolerance: float = 0.1
    rise: float = 0.1
    phi: float = 0.0
    reference: float | None = None

    def validated(self, loss: float) -> None:
        """Take in a validation loss; the first is the reference."""
        if self.reference is None:
            self.reference = loss
        elif loss >= self.reference + self.tolerance:
            self.phi, self.reference = min(1.0, self.phi + self.rise), loss

    def choose(self, u: float, step: int, steps: int, *, full: bool) -> Choice:
        """Where a batch comes from.

        Args:
            u: Drawn evenly from (0, 1).
            step: t above, from 1 on.
            steps: T above.
            full: Whether the buffer is.
        """
        if u >= self.phi:
            return "data"
        return "student" if u < self.phi * (1 - step / steps) or not full else "buffer"
