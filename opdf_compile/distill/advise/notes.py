"""What a user should know beside the figures, in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from opdf_compile.distill.advise.advice import Side
from opdf_compile.distill.advise.entrants import PLAIN
from opdf_compile.distill.engine import whole_run
from opdf_compile.distill.recipe import Job


def race_notes(job: Job, steps: int, plain: Side, over: Side) -> tuple[str, ...]:
    """The job's own notes, and those of a race whose plain runs have so many steps."""
    return _notes(
        job, steps, (("the plain student", plain), ("the over-parameterised student", over))
    )


def side_notes(job: Job, steps: int, sides: Sequence[Side]) -> tuple[str, ...]:
    """The same of a contest of many sides."""
    named = [("the plain student" if s.method == PLAIN else s.method, s) for s in sides]
    return _notes(job, steps, named)


def _notes(job: Job, steps: int, sides: Sequence[tuple[str, Side]]) -> tuple[str, ...]:
    notes, whole = list(job.notes), whole_run(job)
    if steps < whole:
        notes.append(
            f"The recipe's run has {whole} steps; there was time for runs of {steps}. Gains of "
            "short runs can vanish in longer ones: a larger --budget races longer runs."
        )
    for name, side in sides:
        if side.at_edge:
            notes.append(
                f"The best setting of {name} lies at the edge of what was tried: a better one may "
                "lie beyond it."
            )
    if job.recipe.training.early_stopping:
        both = "both sides" if len(sides) == 2 else "all sides"
        notes.append(f"The race leaves out early_stopping, on {both}.")
    return tuple(notes)
