"""From `[data]` to three parts, the inputs of the forward, and a fingerprint."""

from __future__ import annotations

import inspect
from pathlib import Path

from torch import nn

from opdf_compile.distill.recipe.examples import DATA_PARTS, Padded, Table, fingerprint, split_off
from opdf_compile.distill.recipe.job import Data, Examples
from opdf_compile.distill.recipe.models import placed
from opdf_compile.distill.recipe.paths import located
from opdf_compile.distill.recipe.problems import suggestion
from opdf_compile.distill.recipe.schema import Recipe
from opdf_compile.distill.recipe.sources import load_source, read_columns, table_of
from opdf_compile.distill.recipe.tokenising import load_sequences
from opdf_compile.distill.recipe.tokens import INPUTS
from opdf_compile.errors import RecipeError
from opdf_compile.files import importing_from


def load_data(recipe: Recipe, base: Path, student: nn.Module) -> Data:
    """Load, split and fingerprint what a recipe learns from; the student says which are inputs.

    Raises:
        RecipeError: The data cannot be loaded, or does not fit the recipe or the student.
    """
    end = None
    if recipe.language is None:
        parts = _given(recipe, base)
    else:
        sequences, end = load_sequences(recipe, base, student)
        parts = dict(sequences)
    columns = _columns(recipe, parts)
    labels = _labels(recipe, columns)
    whole = _split(recipe, parts, labels)
    return Data(
        train=whole["train"],
        validation=whole["validation"],
        test=whole["test"],
        inputs=_inputs(recipe, columns, labels, student),
        labels=labels,
        collate=Padded(labels),
        fingerprint=fingerprint(whole),
        source=recipe.data.source,
        end=end,
    )


def _given(recipe: Recipe, base: Path) -> dict[str, Examples]:
    """The parts of the source, and those in files of their own."""
    section = recipe.data
    with importing_from(base), placed(recipe, "data", "source"):
        parts = load_source(section.source, base)
    for name in ("validation", "test"):
        file = getattr(section, name)
        if file is None:
            continue
        if name in parts:
            raise RecipeError(
                f"{recipe.place('data', name)}: {section.source} has a {name} part already, found "
                f'another in "{file}", wanted one; remove {name}'
            )
        with placed(recipe, "data", name):
            parts[name] = table_of(read_columns(located(file, base)), file)
    return parts


def _columns(recipe: Recipe, parts: dict[str, Examples]) -> tuple[str, ...]:
    place = recipe.place("data", "source")
    if "train" not in parts:
        raise RecipeError(
            f"{place}: {recipe.data.source} has the parts {', '.join(parts) or 'none'}, wanted one "
            "called train"
        )
    for name, part in parts.items():
        if len(part) == 0:
            raise RecipeError(
                f"{place}: the {name} part of {recipe.data.source} is empty, wanted examples in it"
            )
    columns = tuple(parts["train"][0])
    for name, part in parts.items():
        if set(part[0]) != set(columns):
            raise RecipeError(
                f"{place}: the {name} part has the columns {', '.join(part[0])} and the train part "
                f"{', '.join(columns)}, wanted the same in all parts"
            )
    return columns


def _labels(recipe: Recipe, columns: tuple[str, ...]) -> str | None:
    wanted = recipe.data.labels
    if wanted in columns or wanted is None:
        return wanted
    if "labels" not in recipe.data.model_fields_set:
        return None
    raise RecipeError(
        f'{recipe.place("data", "labels")}: the data has no column "{wanted}", its columns are '
        f"{', '.join(columns)}{suggestion(wanted, columns, 'name one of them, or remove labels')}"
    )


def _split(recipe: Recipe, parts: dict[str, Examples], labels: str | None) -> dict[str, Examples]:
    """All three parts: what the source does not give is split off its train part."""
    section = recipe.data
    for name in ("validation", "test"):
        key = f"{name}_share"
        if name in parts and key in section.model_fields_set:
            raise RecipeError(
                f"{recipe.place('data', key)}: {key} is given and the {name} part is not split "
                f"off, as {getattr(section, name) or section.source} brings one; remove {key}"
            )
    shares = {
        name: share
        for name, share in (
            ("validation", section.validation_share),
            ("test", section.test_share),
        )
        if name not in parts and share > 0
    }
    whole = {**parts, **split_off(parts["train"], shares, labels, section.split_seed)}
    if "test" not in whole:
        whole["test"] = Table({})
    for name in DATA_PARTS:
        if len(whole[name]) == 0 and name != "test":
            key = "validation_share" if name == "validation" else "source"
            raise RecipeError(
                f"{recipe.place('data', key)}: the {name} part is left with no example of the "
                f"{len(parts['train'])} in {section.source}, wanted at least one; give more data "
                "or change validation_share and test_share"
            )
    return whole


def _inputs(
    recipe: Recipe, columns: tuple[str, ...], labels: str | None, student: nn.Module
) -> tuple[str, ...]:
    given = recipe.data.inputs
    if given is not None:
        for place, name in enumerate(given):
            if name not in columns:
                advice = suggestion(name, columns, "name one of them")
                raise RecipeError(
                    f'{recipe.place("data", "inputs", place)}: the data has no column "{name}", '
                    f"its columns are {', '.join(columns)}{advice}"
                )
        return tuple(given)
    candidates = [name for name in columns if name != labels]
    if recipe.language is not None:
        candidates = list(INPUTS)
    if len(candidates) == 1:
        return tuple(candidates)
    kinds = inspect.Parameter
    parameters = inspect.signature(student.forward).parameters
    taken = tuple(name for name in parameters if name in candidates)
    if taken or recipe.language is not None:
        return taken or INPUTS[:1]
    if candidates and any(p.kind is kinds.VAR_KEYWORD for p in parameters.values()):
        return tuple(candidates)
    raise RecipeError(
        f"{recipe.place('data')}: the columns {', '.join(candidates) or 'none'} have no name of "
        f"the student's inputs ({', '.join(parameters)}), wanted to know which go in; name them "
        'with inputs = ["..."] in [data]'
    )
