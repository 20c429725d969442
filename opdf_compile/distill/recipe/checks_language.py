"""What a recipe of a language model says with two keys that cannot both be meant."""

from __future__ import annotations

from collections.abc import Iterator

from opdf_compile.distill.recipe.loss_schema import FromTeacher, HintonSection, SkewSection
from opdf_compile.distill.recipe.problems import Problem
from opdf_compile.distill.recipe.schema import Recipe
from opdf_compile.distill.recipe.text_sources import LINES
from opdf_compile.distill.recipe.tokens import LABELS


def language_problems(recipe: Recipe) -> Iterator[Problem]:
    """The rules that [language] and the teacher's kept logits bring."""
    yield from _texts(recipe)
    yield from _kept(recipe)


def _texts(recipe: Recipe) -> Iterator[Problem]:
    data = recipe.data
    if recipe.language is None:
        if data.source.endswith(LINES):
            yield Problem(
                ("data", "source"),
                f"{data.source} holds prompts and responses and the recipe has no [language], "
                "wanted to know how they are read; add [language], which may be empty",
            )
        return
    if data.labels != LABELS:
        yield Problem(
            ("data", "labels"),
            "[data] has labels and [language] makes them of the responses, wanted one of the two; "
            "remove labels",
        )


def _kept(recipe: Recipe) -> Iterator[Problem]:
    """A mass in place of many logits fits losses that compare probabilities of one row."""
    teacher = recipe.teacher
    if teacher is None or teacher.cache_top_k is None:
        return
    if not teacher.cache:
        yield Problem(
            ("teacher", "cache_top_k"),
            "[teacher] has cache_top_k and keeps nothing, wanted cache = true; add it, or remove "
            "cache_top_k",
        )
    for place, loss in enumerate(recipe.loss):
        softened = isinstance(loss, HintonSection) and loss.temperature != 1
        if isinstance(loss, SkewSection | HintonSection) and not softened:
            continue
        if isinstance(loss, FromTeacher):
            what = "softens them by its temperature" if softened else "compares something else"
            yield Problem(
                ("loss", place, "temperature" if softened else "kind"),
                f"cache_top_k in [teacher] keeps probabilities and the {loss.kind} loss {what}, "
                "wanted skew-kl, reverse-skew-kl, or hinton with temperature = 1.0; change the "
                "loss, or remove cache_top_k",
            )
