"""How the next token is chosen: the most probable one, or drawn from a nucleus.

    p = softmax(z / T); of its classes in falling order the first that together reach top_p are kept

z: logits; T: the temperature, 0 for the most probable class. Source: Holtzman, Buys, Du, Forbes,
Choi 2020, arXiv 1904.09751, section 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from opdf_compile.errors import InputError


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn.

    Attributes:
        max_new_tokens: Tokens of a response at most.
        top_p: The share of the probability that is drawn from; 1 is all of it.
        temperature: Above 1 evens the probabilities out; 0 takes the most probable token.

    Raises:
        InputError: A number is out of its range.
    """

    max_new_tokens: int = 128
    top_p: float = 1.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or not 0 < self.top_p <= 1 or not 0 <= self.temperature < 1e6:
            raise InputError(
                f"Sampling got max_new_tokens {self.max_new_tokens}, top_p {self.top_p} and "
                f"temperature {self.temperature}, wanted one token at least, a top_p above 0 and "
                "of at most 1, and a temperature from 0 on; 128, 1 and 1 are usual"
            )

    def next_tokens(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        """Choose a token for each row.

        Args:
            logits: ``(b, n)``, any float dtype.
            generator: Of the same device; not read where the temperature is 0.

        Returns:
            ``(b,)`` int64.
        """
        if self.temperature == 0:
            return logits.argmax(-1)
        probabilities = torch.softmax(logits.double() / self.temperature, -1)
        if self.top_p < 1:
            probabilities = self._nucleus(probabilities)
        return torch.multinomial(probabilities, 1, generator=generator)[:, 0]

    def _nucleus(self, probabilities: Tensor) -> Tensor:
        falling, places = probabilities.sort(dim=-1, descending=True, stable=True)
        # A class is kept where those before it do not reach top_p yet: the first one always is.
        kept = falling.cumsum(-1) - falling < self.top_p
        return torch.zeros_like(probabilities).scatter(-1, places, falling * kept)
