"""Runs of one task: many methods, starts, seeds and trials, as few fleets as possible."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from quality.fleet import Fleet, OptimizerName, Settings
from quality.forms import Form
from quality.methods import Method, form_of
from quality.networks import seeded
from quality.tasks import Part, Task
from quality.trials import Trial

BATCH = 32
# Warm students: trained on the labels alone, by one fixed recipe, before any method sees them.
WARM_STEPS, WARM_RATE, WARM_DECAY = 1000, 1e-2, 1e-4
STARTS = ("random", "warm")
# The weights' average looks back over this share of a run.
_AVERAGED_SHARE = 0.05
_MOST_ENTRIES = {"cuda": 12_000_000, "cpu": 600_000}


@dataclass(frozen=True)
class Run:
    """One replica: a method from one start, with one seed and one trial.

    Attributes:
        factor: Multiplies the trial's rate; None: the calibration of `matched`.
    """

    method: Method
    start: str
    seed: int
    trial: Trial
    factor: float | None = 1.0


@dataclass(frozen=True)
class Outcome:
    """What a run ended with, by part of the data: (accuracy, KL to the teacher)."""

    run: Run
    scores: dict[str, tuple[float, float]]


class Engine:
    """Trains on one task; keeps starts and orders, which all methods share.

    Args:
        task: On a device, in the dtype of the training.
        optimizer: "sgd" or "adamw".
        record: Record steps as CUDA graphs.
        students: Start weights by (start, seed), kept for other engines of the same task.
    """

    def __init__(
        self,
        task: Task,
        optimizer: OptimizerName,
        *,
        record: bool,
        students: dict[tuple[str, int], dict[str, Tensor]] | None = None,
    ) -> None:
        self.task, self.optimizer, self.record = task, optimizer, record
        self.student = task.student()()
        self._forms: dict[str, Form] = {}
        self._students = {} if students is None else students
        self._flat: dict[tuple[str, str, int], Tensor] = {}
        self.fleets = 0

    @property
    def data(self) -> Part:
        """The training part."""
        return self.task.parts["train"]

    def run(self, runs: Sequence[Run], steps: int, parts: Iterable[str]) -> list[Outcome]:
        """Train all runs for so many steps and score them; in the order given.

        Args:
            runs: Any mixture of methods and starts.
            steps: Of every run.
            parts: Of the data, to score on.
        """
        self._make_starts({(run.start, run.seed) for run in runs})
        outcomes: dict[int, Outcome] = {}
        for name in sorted({run.method.form for run in runs}):
            places = [place for place, run in enumerate(runs) if run.method.form == name]
            for chunk in self._chunks(places, name):
                found = self._fleet(name, [runs[place] for place in chunk], steps, tuple(parts))
                outcomes.update(zip(chunk, found, strict=True))
        return [outcomes[place] for place in range(len(runs))]

    def form(self, name: str) -> Form:
        """The form of a name, made once."""
        if name not in self._forms:
            self._forms[name] = form_of(name, self.student)
        return self._forms[name]

    def start(self, name: str, start: str, seed: int) -> Tensor:
        """The flat vector of a form, decomposed once on the CPU."""
        key = (name, start, seed)
        if key not in self._flat:
            self._flat[key] = self.form(name).start(self._students[start, seed])
        return self._flat[key]

    def orders(self, seeds: Sequence[int], steps: int) -> Tensor:
        """Batches of places in the data ``(steps, seeds, BATCH)``: whole passes, shuffled anew."""
        count = len(self.data.labels)
        per_pass = count // BATCH
        drawn = np.empty((steps, len(seeds), BATCH), dtype=np.int64)
        for column, seed in enumerate(seeds):
            rng = np.random.default_rng((seed, 1))
            for first in range(0, steps, per_pass):
                rows = min(per_pass, steps - first)
                order = rng.permutation(count)[: rows * BATCH]
                drawn[first : first + rows, column] = order.reshape(rows, BATCH)
        return torch.from_numpy(drawn).to(self.data.labels.device)

    def settings(
        self, runs: Sequence[Run], seeds: Sequence[int], factors: Sequence[float]
    ) -> Settings:
        """The runs' options as tensors."""

        def column(values: Iterable[float]) -> Tensor:
            like = self.data.inputs
            return torch.tensor(list(values), dtype=like.dtype, device=like.device)

        rates = [
            run.trial.learning_rate(self.optimizer) * factor
            for run, factor in zip(runs, factors, strict=True)
        ]
        order = torch.tensor([seeds.index(run.seed) for run in runs])
        return Settings(
            column(rates),
            column(run.trial.decay for run in runs),
            column(run.trial.momentum for run in runs),
            column(run.method.soft_share for run in runs),
            order.to(self.data.labels.device),
        )

    def matched_factors(
        self, name: str, pairs: Sequence[tuple[str, int]], trial: Trial
    ) -> list[float]:
        """The package's "matched" rule for each (start, seed): ||dW plain|| / ||dW form||.

        One step of each at the plain rate, on the first batch, over the weights that have tensors.
        """
        moved = [self._first_step(form, pairs, trial) for form in ("plain", name)]
        return (moved[0] / moved[1]).tolist()

    def _first_step(self, name: str, pairs: Sequence[tuple[str, int]], trial: Trial) -> Tensor:
        runs = [Run(Method("calibration", name), start, seed, trial) for start, seed in pairs]
        seeds = sorted({run.seed for run in runs})
        fleet = self._made(name, runs, seeds, [1.0] * len(runs), steps=1)
        before = fleet.weights()
        fleet.settings.decay.zero_()
        fleet.run(self.orders(seeds, 1))
        after = fleet.weights()
        matched = [part.name for part in self.form("mpo").parts if part.matched]
        squares = [
            (after[key] - before[key]).flatten(1).double().square().sum(1) for key in matched
        ]
        return torch.stack(squares).sum(0).sqrt()

    def _chunks(self, places: list[int], name: str) -> list[list[int]]:
        entries = sum(self.form(name).sizes)
        most = max(1, _MOST_ENTRIES[self.data.inputs.device.type] // entries)
        return [places[first : first + most] for first in range(0, len(places), most)]

    def _fleet(
        self, name: str, runs: list[Run], steps: int, parts: tuple[str, ...]
    ) -> list[Outcome]:
        seeds = sorted({run.seed for run in runs})
        fleet = self._made(name, runs, seeds, self._factors(name, runs), steps)
        fleet.run(self.orders(seeds, steps), record=self.record)
        self.fleets += 1
        scored: dict[tuple[str, bool], list[tuple[float, float]]] = {}
        for averaged in {run.method.averaged for run in runs}:
            for part in parts:
                right, apart = fleet.scores(self.task.parts[part], averaged=averaged)
                scored[part, averaged] = list(zip(right.tolist(), apart.tolist(), strict=True))
        return [
            Outcome(run, {part: scored[part, run.method.averaged][place] for part in parts})
            for place, run in enumerate(runs)
        ]

    def _factors(self, name: str, runs: list[Run]) -> list[float]:
        asked = [run for run in runs if run.factor is None]
        if not asked:
            return [float(run.factor or 0.0) for run in runs]
        found: dict[Run, float] = {}
        for trial in {run.trial for run in asked}:
            same = [run for run in asked if run.trial == trial]
            pairs = [(run.start, run.seed) for run in same]
            found.update(zip(same, self.matched_factors(name, pairs, trial), strict=True))
        return [found[run] if run.factor is None else run.factor for run in runs]

    def _made(
        self,
        name: str,
        runs: Sequence[Run],
        seeds: Sequence[int],
        factors: Sequence[float],
        steps: int,
    ) -> Fleet:
        start = torch.stack([self.start(name, run.start, run.seed) for run in runs])
        averaged = any(run.method.averaged for run in runs)
        return Fleet(
            self.student.to(self.data.inputs),
            self.form(name),
            start.to(self.data.inputs),
            self.settings(runs, seeds, factors),
            self.data,
            optimizer=self.optimizer,
            steps=steps,
            averaging=1 - 1 / (_AVERAGED_SHARE * steps) if averaged and steps > 40 else 0.0,
        )

    def _make_starts(self, wanted: set[tuple[str, int]]) -> None:
        """Random students by their seeds; warm ones are the same, trained without a teacher."""
        make = self.task.student()
        for seed in sorted({seed for _start, seed in wanted}):
            if ("random", seed) not in self._students:
                made = seeded(make, seed).named_parameters()
                dtype = self.data.inputs.dtype
                self._students["random", seed] = {k: p.detach().to(dtype) for k, p in made}
        missing = [seed for start, seed in sorted(wanted) if start == "warm"]
        missing = [seed for seed in missing if ("warm", seed) not in self._students]
        if missing:
            self._warm(missing)

    def _warm(self, seeds: list[int]) -> None:
        trial = Trial(WARM_RATE, WARM_DECAY, 0.1)
        runs = [Run(Method("warm", soft_share=0.0), "random", seed, trial) for seed in seeds]
        start = torch.stack([self.start("plain", "random", seed) for seed in seeds])
        fleet = Fleet(
            self.student.to(self.data.inputs),
            self.form("plain"),
            start.to(self.data.inputs),
            self.settings(runs, seeds, [1.0] * len(runs)),
            self.data,
            optimizer="adamw",
            steps=WARM_STEPS,
        )
        # Another order than that of the run which follows.
        fleet.run(self.orders([seed + 500_000 for seed in seeds], WARM_STEPS), record=self.record)
        weights = {key: value.cpu() for key, value in fleet.weights().items()}
        for place, seed in enumerate(seeds):
            self._students["warm", seed] = {k: value[place] for k, value in weights.items()}
