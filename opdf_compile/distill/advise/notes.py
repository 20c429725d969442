"""What a user should know beside the figures, in sentences."""

from __future__ import annotations

from collections.abc import Iterator

from opdf_compile.distill.advise.advice import Side
from opdf_compile.distill.engine import whole_run
from opdf_compile.distill.recipe import Job


def race_notes(job: Job, steps: int, plain: Side, over: Side) -> list[str]:
    """The job's own notes, and those of a race."""
    return [*job.notes, *_length(job, steps), *_edges(plain, over), *_left_out(job)]


def _length(job: Job, steps: int) -> Iterator[str]:
    whole = whole_run(job)
    if steps < whole:
        yield (
            f"The recipe's run has {whole} steps; there was time for runs of {steps}. Gains of "
            "short runs can vanish in longer ones: a larger --budget races longer runs."
        )


def _edges(plain: Side, over: Side) -> Iterator[str]:
    for name, side in (("plain", plain), ("over-parameterised", over)):
        if side.at_edge:
            yield (
                f"The best setting of the {name} student lies at the edge of what was tried: a "
                "better one may lie beyond it."
            )


def _left_out(job: Job) -> Iterator[str]:
    if job.recipe.training.early_stopping:
        yield "The race leaves out early_stopping, on both sides."
