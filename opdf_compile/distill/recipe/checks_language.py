"""What a recipe of a language model says with two keys that cannot both be meant."""

from __future__ import annotations

from collections.abc import Iterator

from opdf_compile.distill.recipe.loss_schema import FromTeacher, HintonSection, SkewSection
from opdf_compile.distill.recipe.problems import Problem
from opdf_compile.distill.recipe.schema import Recipe
from opdf_compile.distill.recipe.text_sources import LINES
from opdf_compile.distill.recipe.tokens import LABELS, STUDENT_MASK


def language_problems(recipe: Recipe) -> Iterator[Problem]:
    """The rules that [language] and the teacher's kept logits bring."""
    yield from _texts(recipe)
    yield from _kept(recipe)
    yield from _written(recipe)
    yield from _losses(recipe)


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


# Keys that one policy alone reads.
_OF_POLICY = {"share": "mixed", "buffer": "adaptive", "tolerance": "adaptive", "rise": "adaptive"}


def _written(recipe: Recipe) -> Iterator[Problem]:
    """Rules on [generation]."""
    section = recipe.generation
    if section is None:
        return
    if recipe.language is None:
        yield Problem(
            ("generation",),
            "[generation] lets the student answer prompts and the recipe has no [language], wanted "
            "prompts and responses; add [language], or remove [generation]",
        )
    for name, policy in _OF_POLICY.items():
        if name in section.model_fields_set and section.policy != policy:
            yield Problem(
                ("generation", name),
                f'[generation] has {name} and policy = "{section.policy}", wanted it with policy = '
                f'"{policy}" alone; remove {name}',
            )
    if section.policy == "adaptive" and section.buffer < recipe.data.batch:
        yield Problem(
            ("generation", "buffer"),
            f"buffer in [generation] holds {section.buffer} responses and a batch has "
            f"{recipe.data.batch}, wanted room for one; write buffer = 1000",
        )
    if section.policy != "data" and not any(loss.needs_teacher for loss in recipe.loss):
        yield Problem(
            ("generation", "policy"),
            "the student writes responses and no loss compares with a teacher, wanted one that "
            'says what is right in them; add [[loss]] kind = "skew-kl", or write policy = "data"',
        )


def _losses(recipe: Recipe) -> Iterator[Problem]:
    writes = recipe.generation is not None and recipe.generation.policy != "data"
    for place, loss in enumerate(recipe.loss):
        if loss.mask == STUDENT_MASK and recipe.language is not None and not writes:
            yield Problem(
                ("loss", place, "mask"),
                f"{STUDENT_MASK} counts what the student wrote and it writes nothing, wanted a "
                'policy; add [generation] with policy = "paired", or remove mask',
            )
        if isinstance(loss, SkewSection) and loss.detach and loss.kind == "skew-kl":
            yield Problem(
                ("loss", place, "detach"),
                "detach belongs to reverse-skew-kl and leaves skew-kl no gradient at all, wanted "
                "it there alone; remove it",
            )
