"""Where a run is: what a checkpoint keeps beside the student and its optimizer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from opdf_compile.errors import ArtefactError


@dataclass
class Counters:
    """Counters of a run.

    Attributes:
        step: Optimizer steps done.
        best: The best validation so far; NaN before the first.
        best_step: When it was reached.
        kept_step: The step of the weights that would ship: of validations that are equally good
            the last, because it was trained longer.
        stale: Validations since the best.
        stopped: Whether early stopping has ended the run.
    """

    step: int = 0
    best: float = math.nan
    best_step: int = 0
    kept_step: int = 0
    stale: int = 0
    stopped: bool = False

    def note(self, value: float, *, higher_is_better: bool) -> bool:
        """Take in a validation; whether the weights of this step are the ones to keep."""
        if math.isnan(value):  # Training diverged: these are nobody's best weights.
            self.stale += 1
            return False
        ahead = value - self.best if higher_is_better else self.best - value
        if math.isnan(self.best) or ahead > 0:
            self.best, self.best_step, self.stale = value, self.step, 0
        else:
            self.stale += 1
        keep = math.isnan(ahead) or ahead >= 0
        if keep:
            self.kept_step = self.step
        return keep

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any, source: str) -> Counters:
        """The inverse.

        Raises:
            ArtefactError: It is something else.
        """
        if isinstance(value, Mapping):
            # Checkpoints of 0.1 also hold the peak rate, which the recipe says.
            value = {key: item for key, item in value.items() if key != "peak"}
        names = {entry.name for entry in fields(cls)}
        numbers = (bool, int, float)
        if (
            not isinstance(value, Mapping)
            or value.keys() != names
            or not all(isinstance(item, numbers) for item in value.values())
        ):
            raise ArtefactError(
                f"{source} does not say where its run was, wanted a checkpoint of opdf-compile "
                "distill; delete it, and the run goes on from the one before"
            )
        return cls(**value)
