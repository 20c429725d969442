"""What Overparam's arguments ask for; everything is checked before a weight is decomposed."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.optim import Optimizer

from opdf_compile.errors import InputError, PlanError
from opdf_compile.planning import Plan, at_most_one, require_plan
from opdf_compile.planning import plan as make_plan
from opdf_compile.training.hoisted.batching import Batched
from opdf_compile.training.hoisted.binding import unwrap, validate
from opdf_compile.training.inline.expanded import Expanded
from opdf_compile.training.optimizer.groups import Group, tensors

# Optimizers that treat every entry by itself, so that stacking tensors changes nothing.
ELEMENTWISE = (
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.Adamax,
    torch.optim.Adagrad,
    torch.optim.Adadelta,
    torch.optim.RMSprop,
    torch.optim.Rprop,
    torch.optim.ASGD,
)
# Optimizers that look at a tensor, or at all of them, as a whole.
_WHOLE = (torch.optim.Adafactor, torch.optim.LBFGS)

Maker = Callable[..., Optimizer]


def student_behind(params: Any, module: nn.Module | None, plan: Plan | None) -> nn.Module:
    """The student that the parameters belong to.

    Raises:
        InputError: Nothing tells which module that is.
    """
    if module is None and isinstance(params, nn.Module):
        module = params
    if module is None and plan is not None:
        module = plan.model
    if module is None:
        raise InputError(
            "Overparam got parameters or param groups without the module that owns them, wanted "
            "its names too; give module=student, or use overparam_class(student, plan)"
        )
    if isinstance(module, Expanded):
        raise InputError(
            "the student is an Expanded, whose parameters are the cores already; give them to the "
            "optimizer itself: AdamW(expanded.parameters()), or hoist it: opdf.hoist(expanded)"
        )
    student = unwrap(module)
    for name, parameter in student.named_parameters():
        if isinstance(parameter, UninitializedParameter) or parameter.is_meta:
            raise InputError(
                f"the student's {name!r} has no values yet (a lazy layer, or the meta device), "
                "wanted weights to start from; run a forward, or load its weights, first"
            )
    return student


def homes(groups: Sequence[Group], student: nn.Module) -> dict[int, int]:
    """For each parameter, by id, the place of its group.

    Raises:
        InputError: A parameter is given twice, or is none of the student's.
    """
    known = {id(p) for p in student.parameters()}
    home: dict[int, int] = {}
    for place, group in enumerate(groups):
        for parameter in tensors(group):
            require_own_parameter(parameter, known, student)
            first = home.setdefault(id(parameter), place)
            if first != place:
                raise InputError(
                    f"a parameter of shape {tuple(parameter.shape)} is in group {first} and again "
                    f"in group {place}, wanted each once; take it out of one"
                )
    return home


def require_own_parameter(parameter: Any, known: set[int], student: nn.Module) -> None:
    """Refuse what is no parameter of the student.

    Raises:
        InputError: With the ways to train it all the same.
    """
    if id(parameter) in known:
        return
    what = (
        f"a tensor of shape {tuple(parameter.shape)}"
        if isinstance(parameter, Tensor)
        else f"a {type(parameter).__name__}"
    )
    raise InputError(
        f"a param group holds {what} that is no parameter of the {type(student).__name__} (a copy, "
        "or another module's?), wanted the student's own; give module= the module that holds them "
        "all, such as nn.ModuleList([student, projector]), or step the others with an optimizer of "
        "their own"
    )


def plan_of(
    student: nn.Module,
    plan: Plan | None,
    cores: int | None,
    scale: float | None,
    home: Mapping[int, int],
) -> Plan:
    """The plan asked for, over the weights that the groups hold.

    Raises:
        PlanError: Two plans are asked for, the plan is for another module, or a planned weight is
            in no group.
    """
    at_most_one(plan=plan, cores=cores, scale=scale)
    if plan is not None:
        require_plan(plan)
    owned = dict(student.named_parameters(remove_duplicate=False))
    absent = [name for name, p in owned.items() if id(p) not in home]
    if plan is None:
        exclude = [name for name in absent if owned[name].requires_grad and owned[name].ndim > 1]
        return _made(student, cores, scale, exclude)
    validate(plan, student)
    for entry in plan.entries:
        if entry.key in absent:
            raise PlanError(
                f"the plan names {entry.key!r}, which is in no param group, so nothing would train "
                "it; add it to a group, or remove the entry"
            )
    return plan


def _made(student: nn.Module, cores: int | None, scale: float | None, exclude: list[str]) -> Plan:
    from opdf_compile.graph import match

    known = {name for m in match(student).matches for name in (m.key, *m.aliases)}
    # As globs that name only these weights.
    globs = [name.replace("[", "[[]") for name in exclude if name in known]
    return make_plan(student, cores=cores, scale=scale, exclude=globs)


def require_shareable(group: Any, optimizer_class: Maker) -> None:
    """Refuse to share out what an optimizer looks at as one vector.

    Raises:
        InputError: Each rank would step along a direction of its own.
    """
    if group is None or not is_lbfgs(optimizer_class):
        return
    raise InputError(
        "LBFGS makes one direction out of all gradients, and with process_group each rank holds "
        "some of them; leave process_group out"
    )


def batching_of(batched: Batched, make: Maker) -> Batched:
    """Whether weights may be batched under this optimizer.

    Raises:
        InputError: It is asked for, and would change what the optimizer does.
    """
    kind = class_of(make)
    if batched is True and kind in _WHOLE:
        raise InputError(
            f"batched=True stacks cores, and {class_name(make)} looks at tensors as a whole, so "
            "that stacks would be stepped otherwise than their members; leave batched out"
        )
    return False if batched == "auto" and kind not in ELEMENTWISE else batched


def class_name(make: Maker) -> str:
    """What to call an optimizer class, or any other callable that makes one."""
    return str(getattr(class_of(make), "__name__", type(make).__name__))


def is_lbfgs(make: Maker) -> bool:
    """Whether an optimizer class is LBFGS, which looks at all gradients and losses as a whole."""
    kind = class_of(make)
    return isinstance(kind, type) and issubclass(kind, torch.optim.LBFGS)


def class_of(make: Any) -> Any:
    """The class inside partials."""
    while isinstance(make, functools.partial):
        make = make.func
    return make


def needs_closure(optimizer: Optimizer) -> bool:
    """Whether `step` cannot be called without a closure, as LBFGS's."""
    given = list(inspect.signature(optimizer.step).parameters.values())
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return bool(given) and given[0].kind in positional and given[0].default is given[0].empty
