"""Distillation: data, losses and training loops that show what over-parameterisation gains.

Every name is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opdf_compile.distill.learning_rate import Matched, matched_rate

# Public name -> the module of this package that has it.
_HOME = {
    "Matched": "learning_rate",
    "matched_rate": "learning_rate",
}

__all__ = [
    "Matched",
    "matched_rate",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
