"""branch: the student with branches beside its own modules; and back.

training = branch(student, plan)     any loop, Trainer, Lightning, DDP
student  = fold(training)            the class, keys and graph that it had
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from opdf_compile.errors import FoldError, PlanError
from opdf_compile.graph import attribute, deep_copy
from opdf_compile.parametrizations import SiteTensors
from opdf_compile.planning import Plan, SiteEntry
from opdf_compile.training.branched.site import AfterSite, BranchedSite

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_PLAIN_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_NORM_OF: dict[int, Any] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}

INLINE = "expand the traced student instead (opdf.expand), whose graph holds any site"

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
        PlanError: The plan has no sites, or one is not made of two modules of torch's own.

    Example:
        >>> import torch, opdf_compile as opdf
        >>> layers = torch.nn.Conv2d(4, 4, 3, padding=1), torch.nn.BatchNorm2d(4), torch.nn.ReLU()
        >>> student = torch.nn.Sequential(*layers)
        >>> traced = opdf.trace(student, (torch.randn(2, 4, 8, 8),))
        >>> training = opdf.branch(student, opdf.plan(traced, parametrization="repvgg"))
        >>> type(opdf.fold(training)[0]).__name__
        'Conv2d'
    """
    if not plan.sites:
        raise PlanError(
            f"the plan has no sites ({len(plan.entries)} weights by cores), wanted branches beside "
            'a convolution and its BatchNorm: opdf.plan(traced, parametrization="repvgg")'
        )
    if any(isinstance(module, BranchedSite) for module in student.modules()):
        raise PlanError("the student has branches already, wanted a plain one; fold it first")
    training = deep_copy(student)
    parts = [(entry, *_modules_of(training, entry)) for entry in plan.sites]
    for entry, conv, norm in parts:
        plain, rest = _plain_norm(entry, norm)
        site = BranchedSite(entry.key, _place(entry.norm["weight"]), entry.spec, conv, plain)
        training.set_submodule(_place(entry.key), site)
        training.set_submodule(site.norm_place, AfterSite(norm, rest))
    return training


def _place(tensor: str) -> str:
    return tensor.rpartition(".")[0]


def _modules_of(student: nn.Module, entry: SiteEntry) -> tuple[nn.Module, Any]:
    """The two modules of a site."""
    places = _place(entry.key), _place(entry.norm["weight"])
    conv, norm = (attribute(student, place) if place else None for place in places)
    whole = isinstance(conv, _CONVS) and f"{places[0]}.weight" == entry.key
    if not whole or not isinstance(norm, nn.modules.batchnorm._BatchNorm):
        raise PlanError(
            f"the site of {entry.key!r} is computed by functions, wanted a Conv and a BatchNorm "
            f"module below the student; {INLINE}"
        )
    assert isinstance(conv, _CONVS)
    if tuple(conv.weight.shape) != entry.spec.shape:
        raise PlanError(
            f"the plan gives {entry.key!r} the shape {list(entry.spec.shape)}, the student has "
            f"{list(conv.weight.shape)}; make a plan for this student"
        )
    names = dict(student.named_modules(remove_duplicate=False))
    if sum(module in (conv, norm) for module in names.values()) > len(places):
        raise PlanError(
            f"the modules of the site {entry.key!r} have several names in the student, which would "
            f"compute the site twice; {INLINE}"
        )
    kind: Any = next(kind for kind in _CONVS if isinstance(conv, kind))
    own = type(conv)
    if own.forward is not kind.forward or own._conv_forward is not kind._conv_forward:
        raise PlanError(
            f"the convolution of {entry.key!r} is of a class with a forward of its own "
            f"({own.__name__}), beside which branches would read another input; {INLINE}"
        )
    for name, module in (("convolution", conv), ("norm", norm)):
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
            raise PlanError(
                f"the {name} of {entry.key!r} has hooks, which would see one branch of several; "
                f"remove them, or {INLINE}"
            )
    return conv, norm


def _plain_norm(entry: SiteEntry, norm: Any) -> tuple[nn.Module, tuple[nn.Module, ...]]:
    """A norm of torch's own on the same tensors, and what the given one does after it."""
    if type(norm) in _PLAIN_NORMS:
        return norm, ()
    plain = _NORM_OF[entry.spec.axes](norm.num_features, eps=norm.eps, momentum=norm.momentum)
    plain._parameters, plain._buffers = norm._parameters, norm._buffers
    plain.train(norm.training)
    rest = tuple(norm.children())
    if not _computes(norm, plain, nn.Sequential(*rest), entry.spec.axes):
        raise PlanError(
            f"the norm of {entry.key!r} is of a class of its own ({type(norm).__name__}) that does "
            f"more than a BatchNorm and its own modules; {INLINE}"
        )
    return plain, rest


@torch.no_grad()
def _computes(norm: Any, plain: nn.Module, rest: nn.Module, axes: int) -> bool:
    """Whether a norm is another one and a rest after it."""
    modes = [(module, module.training) for module in (norm, plain, rest)]
    like = norm.running_mean
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(2, norm.num_features, *[3] * axes, generator=generator)
    x = drawn.to(like.device, like.dtype)
    try:
        for module, _mode in modes:
            module.eval()
        return torch.equal(norm(x.clone()), rest(plain(x.clone())))
    finally:
        for module, mode in modes:
            module.train(mode)


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
            home = site.norm_place if of_norm else _place(site.key)
            names[f"{place}.{name}"] = f"{home}.{name.rpartition('.')[2]}"
    return names


def fold_branches(training: nn.Module) -> nn.Module:
    """A copy of what `branch` gave, without branches.

    Raises:
        FoldError: The module is wrapped, or its numbers are not finite.
    """
    student = deep_copy(training)
    found = [(n, m) for n, m in student.named_modules() if isinstance(m, BranchedSite)]
    for name, site in found:
        if name != _place(site.key):
            raise FoldError(
                f"the site of {site.key!r} stands at {name!r}, wanted {_place(site.key)!r}: the "
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
