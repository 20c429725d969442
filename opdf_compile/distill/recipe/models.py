"""The recipe's student and teacher, from MODEL arguments."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from torch import nn

from opdf_compile.distill.recipe.paths import located, located_model
from opdf_compile.distill.recipe.schema import Recipe, StudentSection, TeacherSection
from opdf_compile.errors import ArtefactError, RecipeError, UserError
from opdf_compile.files import importing_from
from opdf_compile.io import LoadedModel, load_model, prepare_torchvision, seeded

_TRUST = re.compile(r"(?:, or,|;) if you trust [a-z ]+, give --trust-pickle")


@contextlib.contextmanager
def placed(recipe: Recipe, *path: str | int) -> Iterator[None]:
    """Put the line of a key in front of what goes wrong because of it.

    Raises:
        RecipeError: In place of another error of the user's.
    """
    try:
        yield
    except RecipeError:
        raise
    except UserError as error:
        raise RecipeError(f"{recipe.place(*path)}: {error}") from error


def fresh_student(recipe: Recipe, base: Path, seed: int) -> LoadedModel:
    """A fresh student in train mode, all of whose parameters are as its loader gave them."""
    with seeded(seed):
        return _load(recipe, base, "student", recipe.student)


def load_teacher(recipe: Recipe, base: Path) -> nn.Module | None:
    """The teacher in eval mode, without gradients."""
    if recipe.teacher is None:
        return None
    found = _load(recipe, base, "teacher", recipe.teacher).model
    assert isinstance(found, nn.Module)
    return found.eval().requires_grad_(False)


@contextlib.contextmanager
def _without_pickles() -> Iterator[None]:
    """Leave out the advice to trust a pickle: this command has no such option.

    A file of Python code may unpickle whatever its writer trusts.
    """
    try:
        yield
    except ArtefactError as error:
        told = _TRUST.sub("", str(error))
        if told == str(error):
            raise
        raise ArtefactError(f"{told}, or load it in a FILE.py:callable of yours") from error


def _load(
    recipe: Recipe, base: Path, name: str, section: StudentSection | TeacherSection
) -> LoadedModel:
    # The recipe's own code may import transformers or timm, which import it.
    prepare_torchvision()
    with importing_from(base), placed(recipe, name, "model"), _without_pickles():
        loaded = load_model(located_model(section.model, base))
    if not isinstance(loaded.model, nn.Module):
        raise RecipeError(
            f"{recipe.place(name, 'model')}: {section.model} is a program without a class of its "
            f"own, wanted a {name} as a module; give package.module:callable, FILE.py:callable, "
            "FILE.onnx, timm:NAME or hf:DIR"
        )
    if section.weights is not None:
        from opdf_compile.io import load_weights

        with placed(recipe, name, "weights"):
            load_weights(loaded.model, located(section.weights, base))
    return loaded
