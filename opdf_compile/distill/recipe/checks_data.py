"""Whether the values of the data fit the recipe: found before training, not in its midst."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from opdf_compile.distill.recipe.examples import DATA_PARTS, IGNORED_LABEL, Table
from opdf_compile.distill.recipe.job import Data, Outputs
from opdf_compile.distill.recipe.loss_schema import TaskSection
from opdf_compile.distill.recipe.schema import Recipe
from opdf_compile.distill.recipe.tokens import largest_token
from opdf_compile.errors import RecipeError


def require_fitting_data(recipe: Recipe, data: Data, outputs: Outputs) -> None:
    """Look at every value that training would read.

    Examples in memory are looked at; those that a dataset of the user's makes one by one are not.

    Raises:
        RecipeError: An input is NaN, a label is no class, nothing counts, or the run ends within
            its warm-up.
    """
    for part, columns in _tables(data):
        for name in (*data.inputs, *([data.labels] if data.labels else [])):
            _require_numbers(recipe, part, name, columns[name])
        for place, loss in enumerate(recipe.loss):
            if isinstance(loss, TaskSection) and loss.of == "cross_entropy" and data.labels:
                read = loss.student or ("logits" if "logits" in outputs else next(iter(outputs)))
                classes = outputs[read].shape[-1]
                _require_classes(recipe, place, part, columns[data.labels], classes)
            if loss.mask is not None and not bool((columns[loss.mask] != 0).any()):
                raise RecipeError(_nothing_counts(recipe, place, part, f"{loss.mask} is 0"))
    _require_tokens(recipe, data, outputs)
    _require_room(recipe, len(data.train))


def _require_tokens(recipe: Recipe, data: Data, outputs: Outputs) -> None:
    """Refuse token ids that the student has no logit for."""
    if recipe.language is None or "logits" not in outputs:
        return
    known = outputs["logits"].shape[-1]
    for part in DATA_PARTS:
        largest = largest_token(getattr(data, part)) if len(getattr(data, part)) else -1
        if largest >= known:
            raise RecipeError(
                f"{recipe.place('data', 'source')}: the {part} part holds the token id {largest} "
                f"and the student has {known} logits, wanted ids from 0 to {known - 1}; use the "
                "student's own tokenizer, or give the student more tokens"
            )


def _tables(data: Data) -> Iterator[tuple[str, dict[str, Tensor]]]:
    for part in DATA_PARTS:
        examples = getattr(data, part)
        if isinstance(examples, Table):
            yield part, examples.columns


def _require_numbers(recipe: Recipe, part: str, name: str, column: Tensor) -> None:
    if not column.is_floating_point():
        return
    bad = torch.isnan(column).reshape(len(column), -1).any(-1)
    if bad.any():
        raise RecipeError(
            f"{recipe.place('data', 'source')}: column {name} is NaN in {int(bad.sum()):,} of the "
            f"{len(column):,} examples of the {part} part (the first is its example "
            f"{int(bad.nonzero()[0])}), wanted numbers; fill them in or leave those examples out"
        )


def _require_classes(recipe: Recipe, place: int, part: str, labels: Tensor, classes: int) -> None:
    if labels.is_floating_point() or not labels.numel():
        return
    counted = labels[labels != IGNORED_LABEL]
    if not counted.numel():
        raise RecipeError(_nothing_counts(recipe, place, part, f"labels are {IGNORED_LABEL}"))
    low, high = int(counted.min()), int(counted.max())
    if low >= 0 and high < classes:
        return
    raise RecipeError(
        f"{recipe.place('loss', place)}: the labels of the {part} part are {low} to {high} and the "
        f"student has {classes} classes, wanted labels from 0 to {classes - 1} ({IGNORED_LABEL} "
        "leaves one out); number the labels anew, or give the student an output for each class"
    )


def _nothing_counts(recipe: Recipe, place: int, part: str, why: str) -> str:
    return (
        f"{recipe.place('loss', place)}: all {why} in the {part} part, which leaves every example "
        "out of this loss, wanted some that count; look at how the column is made"
    )


def _require_room(recipe: Recipe, examples: int) -> None:
    """The rule on `steps` in checks.py, for a length in epochs."""
    training, warmup = recipe.training, recipe.schedule.warmup
    if training.epochs is None or warmup < 1:
        return
    each = max(1, examples // (recipe.data.batch * training.accumulation))
    if warmup >= training.epochs * each:
        raise RecipeError(
            f"{recipe.place('schedule', 'warmup')}: warmup in [schedule] is {warmup:g} steps and "
            f"the run has {training.epochs * each} ({training.epochs} epochs of {each}), wanted "
            "fewer; write warmup = 0.1 for a tenth of the run"
        )
