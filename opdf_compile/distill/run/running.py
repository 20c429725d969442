"""`run`: a prepared recipe, from the first step to the verified bundle."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from opdf_compile.distill.recipe.job import Job
from opdf_compile.distill.run.events import Watch


@dataclass(frozen=True)
class RunResult:
    """What a run came to.

    Attributes:
        verdict: The parity verdict ("pass", "fail", "inconclusive"), or "not_verified".
        metrics: The metric on the test part by model: "untouched", "teacher", "student", "onnx".
        bundle: What ships, or None where the recipe exports nothing.
        report: The page with curves, metrics and verdict.
        folder: The run's folder.
        steps: Optimizer steps that were made.
        best_step: The step whose weights ship.
    """

    verdict: str
    metrics: Mapping[str, float]
    bundle: Path | None
    report: Path
    folder: Path
    steps: int
    best_step: int

    @property
    def exit_code(self) -> int:
        """What the command line exits with: 1 where parity is refuted."""
        return 1 if self.verdict == "fail" else 0


def run(
    job: Job,
    folder: str | os.PathLike[str],
    *,
    resume: bool = True,
    watch: Watch | None = None,
) -> RunResult:
    """Train, fold, export and verify; a run that was interrupted goes on where it was.

    Args:
        job: A prepared recipe.
        folder: The run's folder, made if missing.
        resume: Go on with a run that the folder holds; False refuses such a folder.
        watch: Is told what happens.

    Raises:
        ArtefactError: The folder holds other files, a damaged run, or the run of something else.
        UserError: The recipe asks for what is not there.
    """
    raise NotImplementedError(Path(folder))
