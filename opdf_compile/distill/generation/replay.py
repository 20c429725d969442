"""The last responses of a student, to be trained on again."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]


class ReplayBuffer:
    """Holds as many pairs of prompt and response as it may; the oldest go first.

    Args:
        capacity: Pairs at most.
    """

    def __init__(self, capacity: int) -> None:
        self._pairs: deque[Pair] = deque(maxlen=capacity)
        self.capacity = capacity

    def __len__(self) -> int:
        return len(self._pairs)

    @property
    def full(self) -> bool:
        """Whether the next pair drives one out."""
        return len(self._pairs) == self.capacity

    def push(self, pairs: Iterable[Pair]) -> None:
        """Take pairs of ``(m,)`` and ``(n,)`` int64 on the CPU."""
        self._pairs.extend(pairs)

    def sample(self, count: int, random: np.random.Generator) -> list[Pair]:
        """Draw different pairs; all of them where it holds fewer than that."""
        places = random.choice(len(self._pairs), min(count, len(self._pairs)), replace=False)
        return [self._pairs[place] for place in places.tolist()]

    def tensors(self) -> dict[str, Tensor]:
        """All that it holds, oldest first; empty where it holds nothing."""
        if not self._pairs:
            return {}
        lengths = [[len(prompt), len(response)] for prompt, response in self._pairs]
        ids = torch.cat([part for pair in self._pairs for part in pair])
        return {"ids": ids, "lengths": torch.tensor(lengths)}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Hold what `tensors` gave, and nothing else."""
        self._pairs.clear()
        if not tensors:
            return
        lengths: list[int] = tensors["lengths"].flatten().tolist()
        parts = torch.split(tensors["ids"], lengths)
        self.push(zip(parts[::2], parts[1::2], strict=True))
