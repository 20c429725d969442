"""The recipe's losses as modules, checked on one batch."""

from __future__ import annotations

import torch
from torch import nn

from opdf_compile.distill import losses as kinds
from opdf_compile.distill.recipe.job import Outputs
from opdf_compile.distill.recipe.loss_schema import FromTeacher, LossSection
from opdf_compile.distill.recipe.models import placed
from opdf_compile.distill.recipe.schema import Recipe
from opdf_compile.errors import RecipeError

FAVOURITE = "logits"


def make_losses(
    recipe: Recipe, student: Outputs, teacher: Outputs | None, labels: str | None
) -> kinds.WeightedSum:
    """The weighted sum of a recipe.

    Raises:
        RecipeError: A loss reads what is not there.
    """
    terms: dict[str, tuple[float, nn.Module]] = {}
    for place, loss in enumerate(recipe.loss):
        terms[loss.name or loss.kind] = (
            loss.weight,
            _term(recipe, place, loss, student, teacher, labels),
        )
    return kinds.WeightedSum(terms)


def _term(
    recipe: Recipe,
    place: int,
    loss: LossSection,
    student: Outputs,
    teacher: Outputs | None,
    labels: str | None,
) -> kinds.Term:
    read = _output(recipe, place, "student", loss.student, student)
    if isinstance(loss, FromTeacher):
        known = teacher or {}
        other = _output(recipe, place, "teacher", loss.teacher, known)
        with placed(recipe, "loss", place):
            return kinds.Term(loss.make(student[read], known[other]), read, other, mask=loss.mask)
    if labels is None:
        raise RecipeError(
            f"{recipe.place('loss', place, 'kind')}: the {loss.kind} loss compares with labels and "
            'the data has no column "labels", wanted their column; name it with labels in [data]'
        )
    return kinds.Term(loss.make(), read, labels=labels, mask=loss.mask)


def _output(recipe: Recipe, place: int, whose: str, name: str | None, outputs: Outputs) -> str:
    """The output that a loss reads: the one it names, or "logits", or the first."""
    if name is None and outputs:
        return FAVOURITE if FAVOURITE in outputs else next(iter(outputs))
    if name in outputs:
        return str(name)
    found = ", ".join(list(outputs)[:8]) or "none"
    raise RecipeError(
        f'{recipe.place("loss", place, whose)}: this loss reads "{name}" of the {whose}, whose '
        f"outputs are {found}, wanted one of them; correct {whose} = ..., or let the model return "
        "it"
    )


def try_losses(
    recipe: Recipe,
    losses: kinds.WeightedSum,
    student: Outputs,
    teacher: Outputs | None,
    batch: Outputs,
) -> None:
    """Compute every loss once, so that shapes that do not fit are found before training.

    Raises:
        RecipeError: One of them cannot be computed.
    """
    for place, term in enumerate(losses.terms.values()):
        with torch.no_grad(), placed(recipe, "loss", place):
            term.pieces(student, teacher, batch)
