"""Folding by the methods that classes bring themselves.

method              class                                      what it does
merge_and_unload    models of PEFT                             returns the base model, merged
fuse                timm's RepViT and LeViT, ultralytics       returns a layer, or changes itself
reparameterize      timm's MobileOne and FastViT               changes itself
switch_to_deploy    RepVGG, ACNet, DBB, UniRepLKNet            changes itself

A method is somebody else's code: whether it did anything, and whether the function is still the
same, is looked at afterwards (`folding`), never taken from its word.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from opdf_compile.errors import FoldError, error_line
from opdf_compile.graph import deep_copy

MERGE = "merge_and_unload"
_OF_PARTS = ("fuse", "reparameterize", "switch_to_deploy")


@dataclass(frozen=True)
class MethodCall:
    """One method that was called.

    Attributes:
        key: The submodule; "" for the model itself.
        method: Its name.
        before: Tensors that the submodule held.
        after: Tensors that are left.
    """

    key: str
    method: str
    before: int
    after: int


def has_methods(model: nn.Module) -> bool:
    """Whether a model or a part of it can fold itself."""
    return any(_method(module, root=module is model) for module in model.modules())


def deployed(model: nn.Module) -> tuple[nn.Module, tuple[MethodCall, ...]]:
    """A copy of a model that folded itself, in eval mode, and what was called.

    Raises:
        FoldError: It has no such method, a method raised, or all of them changed nothing.
    """
    copied = deep_copy(model).eval()
    holder = nn.Module()
    holder.register_module("model", copied)
    calls: list[MethodCall] = []
    with torch.no_grad():
        _deploy(holder, "", calls, root=True)
    folded = holder.get_submodule("model").eval()
    if not calls:
        raise FoldError(
            f"{type(model).__name__} has no method that folds it (looked for {MERGE}, "
            f"{', '.join(_OF_PARTS)}, without arguments), wanted one; fold it by graph "
            "(--by graph)"
        )
    if _same_tensors(model, folded):
        names = ", ".join(dict.fromkeys(call.method for call in calls))
        raise FoldError(
            f"{names} of {type(model).__name__} changed nothing: {len(calls)} calls left every "
            "tensor as it was, wanted folded weights; fold it by graph (--by graph)"
        )
    return folded, tuple(calls)


def _deploy(holder: nn.Module, path: str, calls: list[MethodCall], *, root: bool = False) -> None:
    for name, child in list(holder.named_children()):
        key = "" if root else f"{path}.{name}".lstrip(".")
        method = _method(child, root=root)
        if method is not None:
            before = _count(child)
            child = _called(child, key, method)
            holder.register_module(name, child)
            calls.append(MethodCall(key, method, before, _count(child)))
        _deploy(child, key, calls)


def _method(module: nn.Module, *, root: bool) -> str | None:
    names = (MERGE, *_OF_PARTS) if root else _OF_PARTS
    return next((name for name in names if _takes_nothing(getattr(module, name, None))), None)


def _takes_nothing(method: object) -> bool:
    if not inspect.ismethod(method):
        return False
    parameters = inspect.signature(method).parameters.values()
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return all(p.default is not p.empty or p.kind in optional for p in parameters)


def _called(module: nn.Module, key: str, method: str) -> nn.Module:
    """What a module is after its method; methods return it, another one, or nothing."""
    try:
        fold: Any = getattr(module, method)
        result = fold()
    except Exception as error:  # The user's own code raises whatever it likes.
        raise FoldError(
            f"{method} of {key or type(module).__name__!r} raised {error_line(error)}, wanted a "
            "folded module; fold it by graph (--by graph)"
        ) from error
    return result if isinstance(result, nn.Module) else module


def _count(module: nn.Module) -> int:
    return len(module.state_dict())


def _same_tensors(before: nn.Module, after: nn.Module) -> bool:
    ours, theirs = before.state_dict(), after.state_dict()
    return ours.keys() == theirs.keys() and all(
        ours[key].shape == theirs[key].shape and torch.equal(ours[key], theirs[key]) for key in ours
    )
