"""Backward passes that a graph would lose: torch.export follows the forward of a Function only.

The outputs of such a graph are right, so no comparison of outputs shows it, and its gradients are
those of the forward's own operations: none at all for a straight-through estimator, the wrong sign
for a gradient reversal. The classes that run while a train graph is exported are therefore noted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.autograd import Function

# Functions of torch itself (checkpoint, functorch) have the gradients of what they hold.
_OWN = f"{torch.__name__}."


class LostBackward(Exception):
    """A forward in training uses Functions whose backward no graph would keep."""


@contextlib.contextmanager
def backwards_kept() -> Iterator[None]:
    """Refuse an export inside which a Function with a backward of its own ran.

    Raises:
        LostBackward: One ran; names the classes.
    """
    seen: dict[str, None] = {}
    kept = Function.__dict__["apply"]

    def apply(cls: type[Function], *args: Any, **kwargs: Any) -> Any:
        if not cls.__module__.startswith(_OWN):
            seen[cls.__qualname__] = None
        return kept.__func__(cls, *args, **kwargs)

    Function.apply = classmethod(apply)  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        Function.apply = kept  # type: ignore[method-assign]
    if seen:
        names = ", ".join(seen)
        raise LostBackward(
            f"forward runs the autograd.Function {names}, whose backward a graph would lose"
        )
