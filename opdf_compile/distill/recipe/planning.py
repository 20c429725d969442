"""The recipe's plan for its student."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from opdf_compile.distill.recipe.schema import Recipe
from opdf_compile.errors import RecipeError, UserError
from opdf_compile.planning import Plan, Rules

if TYPE_CHECKING:
    from opdf_compile.distill.layer_map import LayerMap

# What can be asked for wrongly, the likeliest first.
_ASKING = ("scale", "overhead", "cores", "parametrization")


def make_plan(
    recipe: Recipe,
    student: nn.Module,
    arguments: tuple[tuple[Any, ...], dict[str, Any]],
    teacher: nn.Module | None,
    layer_map: LayerMap | None,
) -> Plan:
    """Plan a student as the recipe says.

    Raises:
        RecipeError: No such plan exists.
    """
    from opdf_compile.distill.alignment import joint_plan
    from opdf_compile.graph import PHASES, Phase, trace
    from opdf_compile.planning import DEFAULT_CORES, plan

    section = recipe.plan
    try:
        rules = Rules.of(section.rules, section.parametrization)
        # Branches fold only where both phases have the site; cores need one graph to count by.
        sites = any(rule.of_sites for rule in rules)
        phases: tuple[Phase, ...] = PHASES if sites else ("train",)
        traced = trace(student, *arguments, phases=phases)
        if _joint(recipe, rules) and teacher is not None and layer_map is not None:
            joint = joint_plan(
                traced,
                teacher,
                layer_map,
                section.cores or rules.given[0].own_cores or DEFAULT_CORES,
                include=section.include,
                exclude=section.exclude,
            )
            return joint.plan
        return plan(
            traced,
            cores=section.cores,
            scale=section.scale,
            overhead=section.overhead,
            include=section.include,
            exclude=section.exclude,
            parametrization=None if section.by_default else section.parametrization,
            rules=section.rules,
        )
    except UserError as error:
        place = recipe.place("plan", _blamed(recipe, str(error)))
        raise RecipeError(f"{place}: {error}") from error


def _blamed(recipe: Recipe, message: str) -> str:
    """The key of [plan] that a message is about."""
    section = recipe.plan
    for name in ("include", "exclude", "rules"):
        if any(repr(glob) in message for glob in getattr(section, name)):
            return name
    given = section.model_fields_set
    return next((name for name in _ASKING if name in given), "enabled")


def _joint(recipe: Recipe, rules: Rules) -> bool:
    """Whether modes are chosen for student and teacher together: where cores are aligned."""
    section = recipe.plan
    sized = section.scale is not None or section.overhead is not None
    chains = not rules.mixed and rules.given[0].request.name == "mpo"
    return recipe.alignment is not None and chains and not sized
