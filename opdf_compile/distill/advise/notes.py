"""What a user should know beside the figures, in sentences."""

from __future__ import annotations

from opdf_compile.distill.advise.advice import Side
from opdf_compile.distill.engine import whole_run
from opdf_compile.distill.recipe import Job


def race_notes(job: Job, steps: int, plain: Side, over: Side) -> tuple[str, ...]:
    """The job's own notes, and those of a race whose plain runs have so many steps."""
    notes, whole = list(job.notes), whole_run(job)
    if steps < whole:
        notes.append(
            f"The recipe's run has {whole} steps; there was time for runs of {steps}. Gains of "
            "short runs can vanish in longer ones: a larger --budget races longer runs."
        )
    for name, side in (("plain", plain), ("over-parameterised", over)):
        if side.at_edge:
            notes.append(
                f"The best setting of the {name} student lies at the edge of what was tried: a "
                "better one may lie beyond it."
            )
    if job.recipe.training.early_stopping:
        notes.append("The race leaves out early_stopping, on both sides.")
    return tuple(notes)
