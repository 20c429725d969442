"""The recipe's losses as modules, checked on one batch."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from opdf_compile.distill import losses as kinds
from opdf_compile.distill.augmenting import AUGMENTED, PARTNER, SHARE
from opdf_compile.distill.recipe.job import Outputs
from opdf_compile.distill.recipe.loss_schema import FromTeacher, LossSection, TaskSection
from opdf_compile.distill.recipe.models import placed
from opdf_compile.distill.recipe.schema import Recipe
from opdf_compile.distill.recipe.tokens import MASK
from opdf_compile.errors import RecipeError

FAVOURITE = "logits"
# In front of the names of what a teacher answers with the modules that learn along.
ONLINE = "online."


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
    if recipe.augment is not None:
        terms.update(_augmented(recipe, terms, labels))
    if recipe.online is not None:
        terms.update(_of_online(recipe, teacher or {}, labels))
    return kinds.WeightedSum(terms)


def _augmented(
    recipe: Recipe, terms: Mapping[str, tuple[float, nn.Module]], labels: str | None
) -> dict[str, tuple[float, nn.Module]]:
    """The same losses on the second look at a batch."""
    augment = recipe.augment
    assert augment is not None
    found: dict[str, tuple[float, nn.Module]] = {}
    for (name, (weight, term)), loss in zip(list(terms.items()), recipe.loss, strict=True):
        assert isinstance(term, kinds.Term)
        if isinstance(loss, FromTeacher) and augment.teacher:
            there = kinds.Term(
                term.loss, AUGMENTED + term.student, AUGMENTED + term.teacher, mask=term.mask
            )
            found[f"augmented {name}"] = weight * augment.teacher, there
        elif isinstance(loss, TaskSection) and augment.labels and labels is not None:
            of_both = kinds.MixedLabels(
                loss.make("none"),
                AUGMENTED + term.student,
                labels,
                partner=PARTNER,
                share=SHARE,
                mask=term.mask,
            )
            found[f"augmented {name}"] = weight * augment.labels, of_both
    return found


def with_augmented(outputs: Outputs, augmented: Outputs) -> Mapping[str, Tensor]:
    """A model's outputs, and those on the second look."""
    named = {f"{AUGMENTED}{name}": tensor for name, tensor in augmented.items()}
    return ChainMap(named, outputs)  # type: ignore[arg-type]


def _of_online(
    recipe: Recipe, teacher: Outputs, labels: str | None
) -> dict[str, tuple[float, nn.Module]]:
    """What the modules in the teacher learn by: the task, and to stay near the teacher."""
    online = recipe.online
    assert online is not None
    if labels is None:
        raise RecipeError(
            f"{recipe.place('online')}: the modules in the teacher learn from labels and the data "
            'has no column "labels", wanted their column; name it with labels in [data]'
        )
    task = next((loss for loss in recipe.loss if isinstance(loss, TaskSection)), None)
    follows = next(loss for loss in recipe.loss if isinstance(loss, FromTeacher))
    read = _output(recipe, recipe.loss.index(follows), "teacher", follows.teacher, teacher)
    mask = _mask(recipe, follows if task is None else task)
    loss = kinds.TaskLoss() if task is None else task.make()
    found: dict[str, tuple[float, nn.Module]] = {
        "online task": (online.task, kinds.Term(loss, ONLINE + read, labels=labels, mask=mask))
    }
    if online.anchor:
        near = kinds.Term(
            kinds.ReverseSkewKL(0.0), ONLINE + read, read, mask=_mask(recipe, follows)
        )
        found["online anchor"] = (online.anchor, near)
    return found


def with_online(
    student: Outputs, teacher: Outputs, online: Outputs
) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    """What losses read where modules in the teacher learn along: its answers on both sides.

    The student's side has them to be trained, the teacher's to be followed.
    """
    named = {f"{ONLINE}{name}": tensor for name, tensor in online.items()}
    # A look at one of the teacher's outputs is a look at it: the mapping may count them.
    return {**student, **named}, ChainMap(named, teacher)  # type: ignore[arg-type]


def _term(
    recipe: Recipe,
    place: int,
    loss: LossSection,
    student: Outputs,
    teacher: Outputs | None,
    labels: str | None,
) -> kinds.Term:
    read = _output(recipe, place, "student", loss.student, student)
    mask = _mask(recipe, loss)
    if isinstance(loss, FromTeacher):
        known = teacher or {}
        other = _output(recipe, place, "teacher", loss.teacher, known)
        with placed(recipe, "loss", place):
            made = loss.make(student[read], known[other])
            followed = other if recipe.online is None else ONLINE + other
            return kinds.Term(made, read, followed, mask=mask)
    if labels is None:
        raise RecipeError(
            f"{recipe.place('loss', place, 'kind')}: the {loss.kind} loss compares with labels and "
            'the data has no column "labels", wanted their column; name it with labels in [data]'
        )
    return kinds.Term(loss.make(), read, labels=labels, mask=mask)


def _mask(recipe: Recipe, loss: LossSection) -> str | None:
    """The column that says which rows count: of a language model, the tokens of the response."""
    return loss.mask or (None if recipe.language is None else MASK)


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


def logits_of(outputs: Outputs) -> Tensor:
    """The output that losses read by default."""
    return outputs[FAVOURITE] if FAVOURITE in outputs else next(iter(outputs.values()))


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
    if recipe.augment is not None:
        # The first look stands for the second, whose shapes are the same.
        rows = torch.arange(len(next(iter(batch.values()))))
        batch = {**batch, PARTNER: rows, SHARE: torch.ones(len(rows), dtype=torch.float64)}
        student = with_augmented(student, student)
        teacher = None if teacher is None else with_augmented(teacher, teacher)
    if recipe.online is not None and teacher is not None:
        student, teacher = with_online(student, teacher, teacher)
    for place, term in enumerate(losses.terms.values()):
        beside = "augment" if recipe.augment is not None else "online"
        where = ("loss", place) if place < len(recipe.loss) else (beside,)
        with torch.no_grad(), placed(recipe, *where):
            term.pieces(student, teacher, batch)
