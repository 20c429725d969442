"""branch: the student with branches beside its own modules; and back.

training = branch(student, plan)     any loop, Trainer, Lightning, DDP
student  = fold(training)            the class, keys and graph that it had
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from opdf_compile.errors import FoldError, PlanError, require_type
from opdf_compile.graph import deep_copy
from opdf_compile.parametrizations import SiteTensors
from opdf_compile.planning import Plan, require_plan
from opdf_compile.training.branched.fitting import place_of, plain_norm, site_modules
from opdf_compile.training.branched.site import AfterSite, BranchedSite

_Model = TypeVar("_Model", bound=nn.Module)


def branch(student: _Model, plan: Plan) -> _Model:
    """A copy of the student that trains with branches beside its convolutions.

    Of each site of the plan the convolution is replaced by a module that computes convolution,
    norm and branches, and the norm by what is left of it. Everything else is the student's own:
    its class, its forward, its other modules and their names. With the plan's usual start it
    computes in eval mode what the student does.

    Args:
        student: What is trained; it is left as it is.
        plan: Its sites get branches. Weights that it over-parameterises by cores keep their names:
            give the same plan to `opdf.Overparam`.

    Returns:
        To train in any loop, and to give to `opdf.fold` then.

    Raises:
        PlanError: The plan has no sites, one is not made of two modules of torch's own, or the
            student's is another one (its stride, its norm's eps, what is frozen).
        InputError: An argument is of another type.

    Example:
        >>> import torch, opdf_compile as opdf
        >>> layers = torch.nn.Conv2d(4, 4, 3, padding=1), torch.nn.BatchNorm2d(4), torch.nn.ReLU()
        >>> student = torch.nn.Sequential(*layers)
        >>> traced = opdf.trace(student, (torch.randn(2, 4, 8, 8),))
        >>> training = opdf.branch(student, opdf.plan(traced, parametrization="repvgg"))
        >>> type(opdf.fold(training)[0]).__name__
        'Conv2d'
    """
    require_type(student, nn.Module, "the student", "a torch.nn.Module")
    require_plan(plan)
    if not plan.sites:
        raise PlanError(
            f"the plan has no sites ({len(plan.entries)} weights by cores), wanted branches beside "
            'a convolution and its BatchNorm: opdf.plan(traced, parametrization="repvgg")'
        )
    if any(isinstance(module, BranchedSite) for module in student.modules()):
        raise PlanError("the student has branches already, wanted a plain one; fold it first")
    training = deep_copy(student)
    parts = [(entry, *site_modules(training, entry)) for entry in plan.sites]
    for entry, conv, norm in parts:
        plain, rest = plain_norm(entry, norm)
        site = BranchedSite(entry.key, place_of(entry.norm["weight"]), entry.spec, conv, plain)
        training.set_submodule(place_of(entry.key), site)
        training.set_submodule(site.norm_place, AfterSite(site, norm, rest))
    return training


def has_branches(module: object) -> bool:
    """Whether a module trains with branches."""
    if not isinstance(module, nn.Module):
        return False
    return any(isinstance(part, BranchedSite) for part in module.modules())


def names_in_student(training: nn.Module) -> dict[str, str]:
    """Of every parameter the name that it goes by in the student.

    What names a convolution or a norm means the convolutions and norms of its branches, too.
    """
    names = {name: name for name, _parameter in training.named_parameters()}
    for place, site in training.named_modules():
        if not isinstance(site, BranchedSite):
            continue
        for name, _parameter in site.named_parameters():
            of_norm = any(part.startswith("norm") for part in name.split(".")[:-1])
            home = site.norm_place if of_norm else place_of(site.key)
            names[f"{place}.{name}"] = f"{home}.{name.rpartition('.')[2]}"
    return names


def branch_prefixes(plan: Plan) -> tuple[str, ...]:
    """What the names of branches' tensors begin with in the module form."""
    return tuple(f"{place_of(site.key)}.branches." for site in plan.sites)


def fold_branches(training: nn.Module) -> nn.Module:
    """A copy of what `branch` gave, without branches.

    Raises:
        FoldError: The module is wrapped, or its numbers are not finite.
    """
    student = deep_copy(training)
    found = [(n, m) for n, m in student.named_modules() if isinstance(m, BranchedSite)]
    for name, site in found:
        if name != place_of(site.key):
            raise FoldError(
                f"the site of {site.key!r} stands at {name!r}, wanted {place_of(site.key)!r}: the "
                "student is wrapped (DDP, torch.compile, an average); fold the module inside"
            )
    for name, site in found:
        values = site.folded()
        after = student.get_submodule(site.norm_place)
        assert isinstance(after, AfterSite)
        student.set_submodule(site.norm_place, after.restored(site.norm, values))
        student.set_submodule(name, _written(site.conv, values))
    return student


@torch.no_grad()
def _written(conv: Any, values: SiteTensors) -> nn.Module:
    weight: Tensor = conv.weight
    # .data keeps the Parameter object and its layout (channels_last).
    weight.data = torch.empty_like(weight).copy_(values.weight)
    return conv  # type: ignore[no-any-return]
