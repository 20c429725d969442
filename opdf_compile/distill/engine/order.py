"""Which examples make up which step: a function of the seed and the number of the step alone.

No state is kept between steps, so a resumed run has nothing to wind forward. Every process computes
the order of all of them and takes its part, so that together they see what one process would.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from opdf_compile.errors import InputError


@dataclass(frozen=True)
class ExampleOrder:
    """The order of the examples.

    Attributes:
        examples: Examples in the training part.
        batch: Examples per forward, over all processes.
        accumulation: Batches per optimizer step.
        seed: Where the shuffles start.
    """

    examples: int
    batch: int
    accumulation: int
    seed: int
    _kept: dict[int, list[int]] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.examples < 1:
            raise InputError(
                "the training part has no examples, wanted at least one; check [data] source and "
                "the shares of the other parts"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one pass; an incomplete last one is left out, another each time."""
        return max(1, self.examples // (self.batch * self.accumulation))

    def batches(self, step: int) -> list[list[int]]:
        """The batches of a step (from 0 on): indices into the training part.

        A training part that is smaller than one step gives all it has.
        """
        epoch, place = divmod(step, self.steps_per_epoch)
        size = self.batch * self.accumulation
        chosen = self._shuffled(epoch)[place * size : (place + 1) * size]
        return [chosen[start : start + self.batch] for start in range(0, len(chosen), self.batch)]

    def _shuffled(self, epoch: int) -> list[int]:
        if epoch not in self._kept:
            self._kept.clear()  # A step looks at one epoch, and there may be millions of examples.
            # Seeded by the pair: with seed + epoch, two runs would share most of their orders.
            generator = np.random.default_rng([self.seed, epoch])
            self._kept[epoch] = generator.permutation(self.examples).tolist()
        return self._kept[epoch]


def shard(indices: list[int], rank: int, ranks: int) -> list[int]:
    """One process's part of a batch; all parts in a row are the batch.

    Raises:
        InputError: There are more processes than examples.
    """
    if len(indices) < ranks:
        raise InputError(
            f"a batch of {len(indices)} examples cannot be shared out over {ranks} processes, "
            "wanted one example for each; raise [data] batch or start fewer processes"
        )
    # Parts differ by one example at most; the objective divides by what was counted, not by parts.
    start, end = (len(indices) * place // ranks for place in (rank, rank + 1))
    return indices[start:end]
