"""Whether a student's modules are those that a plan's site was found in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from opdf_compile.errors import PlanError
from opdf_compile.graph import (
    FROZEN,
    FROZEN_NORM,
    NORM_TENSORS,
    Site,
    attribute,
    deep_copy,
    zeros_around,
)
from opdf_compile.planning import SiteEntry

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_PLAIN_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_NORM_OF: dict[int, Any] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}

INLINE = "expand the traced student instead (opdf.expand), whose graph holds any site"


def place_of(tensor: str) -> str:
    """Name of the module that holds a tensor."""
    return tensor.rpartition(".")[0]


def site_modules(student: nn.Module, entry: SiteEntry) -> tuple[nn.Module, Any]:
    """The convolution and the norm of a site.

    Raises:
        PlanError: They are no modules of torch's own, or of another site than the plan's.
    """
    places = place_of(entry.key), place_of(entry.norm["weight"])
    conv, norm = (attribute(student, place) if place else None for place in places)
    _require_one_name(student, entry, conv, norm)
    whole = isinstance(conv, _CONVS) and f"{places[0]}.weight" == entry.key and entry.modules
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
    _require_own_forward(entry, conv)
    entry.require_site(_found(entry, conv, norm, student.training))
    _require_no_hooks(entry, conv, norm)
    return conv, norm


def _found(entry: SiteEntry, conv: Any, norm: Any, training: bool) -> Site | str:
    """The site that two modules make, or why it is none."""
    if not conv.weight.requires_grad:
        return FROZEN
    if training and not norm.training:
        return FROZEN_NORM
    place = place_of(entry.norm["weight"])
    kept = [name for name in NORM_TENSORS if getattr(norm, name, None) is not None]
    return Site(
        key=entry.key,
        norm={name: f"{place}.{name}" for name in kept},
        shape=tuple(conv.weight.shape),
        dtype=str(conv.weight.dtype).removeprefix("torch."),
        stride=conv.stride,
        padding=zeros_around(conv.padding, conv.kernel_size, conv.dilation),
        dilation=conv.dilation,
        groups=conv.groups,
        eps=norm.eps,
        momentum=norm.momentum,
        bias=None if conv.bias is None else f"{place_of(entry.key)}.bias",
    )


def _require_own_forward(entry: SiteEntry, conv: Any) -> None:
    kind: Any = next(kind for kind in _CONVS if isinstance(conv, kind))
    own = type(conv)
    if own.forward is not kind.forward or own._conv_forward is not kind._conv_forward:
        raise PlanError(
            f"the convolution of {entry.key!r} is of a class with a forward of its own "
            f"({own.__name__}), beside which branches would read another input; {INLINE}"
        )
    if conv.padding_mode != "zeros":
        raise PlanError(
            f"the convolution of {entry.key!r} pads its input by itself (padding_mode="
            f"{conv.padding_mode!r}), beside which branches would read another input; {INLINE}"
        )


def _require_one_name(student: nn.Module, entry: SiteEntry, conv: Any, norm: Any) -> None:
    names = dict(student.named_modules(remove_duplicate=False))
    if sum(module in (conv, norm) for module in names.values()) > 2:
        raise PlanError(
            f"the modules of the site {entry.key!r} have several names in the student, which would "
            f"compute the site twice; {INLINE}"
        )


def _require_no_hooks(entry: SiteEntry, conv: Any, norm: Any) -> None:
    for name, module in (("convolution", conv), ("norm", norm)):
        kinds = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")
        if any(getattr(module, f"_{kind}") for kind in kinds):
            raise PlanError(
                f"the {name} of {entry.key!r} has hooks, which would see one branch of several; "
                f"remove them, or {INLINE}"
            )


def plain_norm(entry: SiteEntry, norm: Any) -> tuple[nn.Module, tuple[nn.Module, ...]]:
    """A norm of torch's own on the same tensors, and what the given one does after it.

    Raises:
        PlanError: The given one does more than a BatchNorm and its own modules.
    """
    if type(norm) in _PLAIN_NORMS:
        return norm, ()
    plain = _NORM_OF[entry.spec.axes](norm.num_features, eps=norm.eps, momentum=norm.momentum)
    plain._parameters, plain._buffers = norm._parameters, norm._buffers
    plain.train(norm.training)
    rest = tuple(norm.children())
    if not _computes(norm, plain, rest, entry.spec.axes):
        raise PlanError(
            f"the norm of {entry.key!r} is of a class of its own ({type(norm).__name__}) that does "
            f"more than a BatchNorm and its own modules; {INLINE}"
        )
    return plain, rest


def _computes(norm: Any, plain: nn.Module, rest: tuple[nn.Module, ...], axes: int) -> bool:
    """Whether a norm is another one and a rest after it, in both modes."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(2, norm.num_features, *[3] * axes, generator=generator)
    x = drawn.to(norm.running_mean.dtype)
    for training in (False, True):
        found, wanted = (_run(m, x, training) for m in (norm, nn.Sequential(plain, *rest)))
        if not all(map(torch.equal, found, wanted)):
            return False
    return True


@torch.no_grad()
def _run(module: nn.Module, x: Tensor, training: bool) -> list[Tensor]:
    """What a copy of a module makes of an input, and where its buffers are then."""
    copied = deep_copy(module).cpu().train(training)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # What a dropout draws is the same for all.
        made: Tensor = copied(x.clone())
    return [made, *copied.buffers()]
