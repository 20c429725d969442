"""The recipe's optimizer over a student, plain or over-parameterised."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer

from opdf_compile.distill.recipe.checks_optimizer import optimizer_class, optimizer_options
from opdf_compile.distill.recipe.models import placed
from opdf_compile.distill.recipe.schema import Recipe
from opdf_compile.errors import RecipeError
from opdf_compile.planning import Plan
from opdf_compile.training import Overparam, names_in_student

if TYPE_CHECKING:
    from opdf_compile.training import Alignment


def make_optimizer(
    recipe: Recipe,
    student: nn.Module,
    plan: Plan | None,
    *,
    lr: float | None = None,
    weight_decay: float | None = None,
    alignment: Alignment | None = None,
) -> Optimizer:
    """The optimizer of a run.

    Raises:
        RecipeError: The optimizer does not take the student.
    """
    section = recipe.optimizer
    rate = section.lr if lr is None else lr
    options = {"lr": rate, **optimizer_options(section, weight_decay)}
    groups = parameter_groups(recipe, student)
    kind = optimizer_class(section)
    if plan is None or not plan.entries:
        if alignment is not None:
            raise RecipeError(
                f"{recipe.place('alignment')}: no weight of the plan is made of cores, and "
                "alignment pulls cores; remove [alignment], or choose another parametrization in "
                "[plan]"
            )
        return kind(groups, **options)
    pulled: dict[str, Any] = {} if alignment is None else {"alignment": alignment}
    with placed(recipe, "optimizer", "name"):
        return Overparam(
            groups, kind, plan=plan, module=student, decay=section.decay, **pulled, **options
        )


def parameter_groups(recipe: Recipe, student: nn.Module) -> list[dict[str, Any]]:
    """The student's parameters, those of `no_decay` in a group of their own.

    Raises:
        RecipeError: A glob names no parameter.
    """
    own = names_in_student(student)
    named = [(own[name], p) for name, p in student.named_parameters() if p.requires_grad]
    globs = recipe.optimizer.no_decay
    for place, glob in enumerate(globs):
        if not any(fnmatchcase(name, glob) for name, _ in named):
            raise RecipeError(
                f'{recipe.place("optimizer", "no_decay", place)}: the glob "{glob}" names none of '
                f"the student's {len(named)} parameters, wanted one that does (the first is "
                f'"{named[0][0] if named else "none"}"); correct or remove it'
            )
    free = [p for name, p in named if any(fnmatchcase(name, glob) for glob in globs)]
    kept = {id(p) for p in free}
    groups: list[dict[str, Any]] = [{"params": [p for _, p in named if id(p) not in kept]}]
    if free:
        groups.append({"params": free, "weight_decay": 0.0})
    return [group for group in groups if group["params"]]
