"""The recipe's layer map, and the warm start that it allows."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from torch import nn

from opdf_compile.distill.recipe.models import placed
from opdf_compile.distill.recipe.schema import Recipe
from opdf_compile.errors import InputError, InternalError

_LOG = logging.getLogger("opdf_compile")

if TYPE_CHECKING:
    from opdf_compile.distill.layer_map import LayerMap


def make_layer_map(
    recipe: Recipe,
    student: nn.Module,
    teacher: nn.Module | None,
    arguments: tuple[tuple[Any, ...], dict[str, Any]],
) -> LayerMap | None:
    """The map that the recipe names, checked against both models; None where nothing reads it.

    Raises:
        RecipeError: The map names weights that are not there, or none is found.
    """
    if not recipe.student.warm_start and recipe.alignment is None:
        return None
    from opdf_compile.distill.layer_map import LayerMap, every_kth, found_map

    given = recipe.student.layer_map
    if teacher is None:
        raise InternalError("a recipe whose layers are mapped passed its checks without a teacher")
    with placed(recipe, *_reader(recipe)):
        if isinstance(given, dict):
            return LayerMap.from_mapping(given)
        if given == "every-kth":
            try:
                return every_kth(student, teacher)
            except InputError as error:  # Its advice is for programmers.
                raise InputError(
                    f'{str(error).partition("; ")[0]}; write layer_map = "found" in [student], '
                    "which looks at the graphs, or a table of names"
                ) from error
        from opdf_compile.graph import trace

        return found_map(trace(student, *arguments), trace(teacher, *arguments))


def _reader(recipe: Recipe) -> tuple[str, ...]:
    """The key that asks for the map: the map's own, or else what reads it."""
    if "layer_map" in recipe.student.model_fields_set:
        return "student", "layer_map"
    return ("student", "warm_start") if recipe.student.warm_start else ("alignment",)


def warm_started(
    recipe: Recipe, student: nn.Module, teacher: nn.Module | None, layer_map: LayerMap | None
) -> None:
    """Copy the teacher's mapped layers into a student.

    Raises:
        RecipeError: They cannot be copied.
    """
    from opdf_compile.distill.layer_map import copy_layers

    if teacher is None or layer_map is None:
        raise InternalError("a recipe with a warm start was prepared without a layer map")
    with placed(recipe, "student", "warm_start"):
        _LOG.info("%s", copy_layers(student, teacher, layer_map))
