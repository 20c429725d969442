"""Batches that the student writes: on-policy, mixed, adaptive (DistiLLM), paired (DistiLLM-2).

    on         every batch
    mixed      a share of the batches
    adaptive   as `AdaptivePolicy` says, with a buffer of the last responses
    paired     each batch twice: with the responses of the data, and with those of the student

The plain student writes, in eval mode, as it is before the step. Every draw is a function of the
seed and the number of the step. Source of on and mixed: Agarwal et al. 2024 (GKD), arXiv
2306.13649.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from opdf_compile.distill.engine.batch_source import DataBatches, Drawn
from opdf_compile.distill.engine.evaluation import Evaluation
from opdf_compile.distill.engine.order import shard
from opdf_compile.distill.engine.setup import Setup
from opdf_compile.distill.generation import (
    AdaptivePolicy,
    Choice,
    ReplayBuffer,
    Sampling,
    respond,
)
from opdf_compile.distill.recipe import INPUTS, PROMPT, Batch, example_of, likelihood, logits_of
from opdf_compile.io import RankGroup

_Pair = tuple[Tensor, Tensor]
# Orders of examples are seeded by the seed and the epoch; these draws, by a longer key.
_KEY = 1
_LARGEST_SEED = 1 << 62


class WrittenBatches:
    """Batches of a recipe with [generation].

    Args:
        setup: Has the student, and the data whose prompts it answers.
        rank: This process.
        ranks: How many there are.

    Attributes:
        policy: The scheduler of "adaptive"; at rest with every other policy.
        buffer: The last responses; empty with every other policy.
        counts: Batches by where they came from, and the tokens that were written.
        seconds: Spent on writing, in this process.
    """

    def __init__(self, setup: Setup, rank: int, ranks: int) -> None:
        section = setup.job.recipe.generation
        assert section is not None
        self._setup, self._section = setup, section
        self._rank, self._ranks = rank, ranks
        self._data = DataBatches(setup, rank, ranks)
        self._sampling = Sampling(section.max_new_tokens, section.top_p, section.temperature)
        self._evaluation = Evaluation(
            setup.job, setup.batches, lambda *_: None, metric=likelihood()
        )
        self.policy = AdaptivePolicy(section.tolerance, section.rise)
        self.buffer = ReplayBuffer(section.buffer)
        self.counts: Counter[str] = Counter()
        self.seconds = 0.0

    def batches(self, number: int) -> list[Drawn]:
        """The batches of a step; all processes together."""
        setup = self._setup
        each = setup.job.recipe.training.evaluate_every or setup.order.steps_per_epoch
        if self._section.policy == "adaptive" and number % each == 0:
            self.policy.validated(self._evaluation.of(setup.student, "validation"))
        places = self._data.places(number)
        return [self._one(number, place, own) for place, own in enumerate(places)]

    def _one(self, number: int, place: int, indices: list[int]) -> Drawn:
        # The same in all processes.
        random = np.random.default_rng([self._setup.order.seed, number, place, _KEY])
        choice = self._chosen(float(random.uniform()), number)
        self.counts[choice] += 1
        if choice == "data":
            return self._data.of(indices)
        if choice == "buffer":
            pairs = self.buffer.sample(self._setup.job.recipe.data.batch, random)
            own = shard(list(range(len(pairs))), self._rank, self._ranks)
            return self._batch([pairs[place] for place in own])
        pairs = self._written(indices, int(random.integers(_LARGEST_SEED)))
        beside = indices if self._section.policy == "paired" else []
        return self._batch(pairs, beside)

    def _chosen(self, u: float, number: int) -> Choice:
        section = self._section
        if section.policy == "adaptive":
            return self.policy.choose(u, number + 1, self._setup.steps, full=self.buffer.full)
        share = {"on": 1.0, "paired": 1.0, "mixed": section.share}.get(section.policy, 0.0)
        return "student" if u < share else "data"

    def _written(self, indices: Sequence[int], seed: int) -> list[_Pair]:
        """The student's responses to these examples' prompts."""
        setup, started = self._setup, time.perf_counter()
        examples = (setup.job.data.train[index] for index in indices)
        prompts = [example[INPUTS[0]][: int(example[PROMPT])] for example in examples]

        def forward(ids: Tensor, mask: Tensor) -> Tensor:
            batch = dict(zip(INPUTS, (ids, mask), strict=True))
            return logits_of(setup.job.forward(setup.student, batch))

        with setup.machine.autocast():
            responses = respond(
                setup.student,
                prompts,
                self._sampling,
                end=setup.job.data.end,
                seed=seed + self._rank,
                forward=forward,
            )
        pairs = list(zip(prompts, responses, strict=True))
        self.seconds += time.perf_counter() - started
        # All processes keep the same buffer, in the order of the prompts.
        whole = pairs if self._ranks == 1 else [p for own in RankGroup().gather(pairs) for p in own]
        self.counts["tokens"] += sum(len(response) for _, response in whole)
        if self._section.policy == "adaptive":
            self.buffer.push(whole)
        return pairs

    def _batch(self, pairs: Sequence[_Pair], beside: Sequence[int] = ()) -> Drawn:
        """Responses of the student, behind examples of the data."""
        data, language = self._setup.job.data, self._setup.job.recipe.language
        assert language is not None
        rows: list[Batch] = [data.train[index] for index in beside]
        rows += [example_of(*pair, language.learn, by_student=True) for pair in pairs]
        return Drawn(self._setup.batches.moved(data.collate(rows)), None)

    def state(self) -> dict[str, Any]:
        """Counts and the scheduler."""
        policy = self.policy
        return {"counts": dict(self.counts), "phi": policy.phi, "reference": policy.reference}

    def tensors(self) -> dict[str, Tensor]:
        """The buffer."""
        return self.buffer.tensors()

    def load(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Take a state up."""
        self.counts = Counter(state["counts"])
        self.policy.phi, self.policy.reference = state["phi"], state["reference"]
        self.buffer.load(tensors)
