"""Optimizers with two modes: they train one point and evaluate another, and move between the two.

    opt.eval(), opt.train(), and the same of opt.inner  ->  cores move  ->  W <- compose(cores)

Biases are parameters of the wrapped optimizer itself and move with its call; W must move with them,
whoever calls, or the student is half in one mode and half in the other.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

MODES = ("train", "eval")


def switch(inner: Optimizer, mode: str) -> None:
    """Call the optimizer's own method for a mode, where it has one."""
    method = getattr(inner, mode, None)
    if callable(method):
        method()


def watch(inner: Optimizer, follow: Callable[[str], None]) -> None:
    """Have a method called with the mode after each switch of the optimizer, whoever calls.

    The methods for the modes are wrapped, as a scheduler wraps `step`. `follow` is a bound
    method, whose object is not kept alive.
    """
    followed = weakref.WeakMethod(follow)
    for mode in MODES:
        if callable(method := getattr(inner, mode, None)):
            setattr(inner, mode, _followed(method, mode, followed))


def _followed(
    method: Callable[..., Any], mode: str, followed: weakref.WeakMethod[Callable[[str], None]]
) -> Callable[..., Any]:
    @functools.wraps(method)
    def switching(*args: Any, **options: Any) -> Any:
        result = method(*args, **options)
        if (follow := followed()) is not None:
            follow(mode)
        return result

    return switching
