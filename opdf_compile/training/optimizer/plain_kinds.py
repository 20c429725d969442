"""What plain values can stand for: the kinds that a writer marks and a reader knows."""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Callable
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import Tensor

MARK = "$"
LISTS: dict[str, Callable[[Any], Any]] = {
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "Size": torch.Size,
}
DICTS: dict[str, type] = {"dict": dict, "OrderedDict": OrderedDict, "Counter": Counter}
DEFAULTS: dict[str, Callable[[], Any]] = {c.__name__: c for c in (dict, list, set, int, float)}
NAMED = (type, FunctionType, BuiltinFunctionType)


def declared() -> dict[str, type[Tensor]]:
    """Classes of tensors that their libraries declared safe to be loaded, by name."""
    found = torch.serialization.get_safe_globals()
    given = [item[0] if isinstance(item, tuple) else item for item in found]
    return {qualified_name(c): c for c in given if isinstance(c, type) and issubclass(c, Tensor)}


def hash_of(value: bytes) -> str:
    """What stands for bytes in a state."""
    return hashlib.sha256(value).hexdigest()


def qualified_name(value: Any) -> str:
    """What stands for a class or a function in a state."""
    return f"{value.__module__}.{value.__qualname__}"
