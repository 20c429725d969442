"""Everything that a model's modules hold, noted before a step and compared after it.

The product puts attributes back by itself; this looks from outside and shares none of its code.
Every submodule's `__dict__` is copied, entry by entry:

    tensors     the object, and its bits
    modules     the object; its own `__dict__` has its own place
    containers  entry by entry, a dict with the order of its keys
    objects     their class and their own `__dict__`, to a depth
    the rest    the object, or a value that equals it
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from zoo.checks import CheckFailed, same_bits

# An object in an attribute may hold the whole library; this deep lie configurations and caches.
_DEEPEST = 4
_ONE_OBJECT = (nn.Module, type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType)


@dataclass(frozen=True)
class Attributes:
    """The entries of all submodules at one moment.

    Attributes:
        entries: What stands at each path, such as "layers.0.grid[1]".
    """

    entries: Mapping[str, Any]

    @classmethod
    def of(cls, model: nn.Module) -> Attributes:
        """Copy the entries of every submodule."""
        entries: dict[str, Any] = {}
        for name, module in model.named_modules():
            for path, value in _flat(vars(module), name, 0):
                entries[path] = _kept(value)
        return cls(entries)

    def require_same(self, model: nn.Module, step: str) -> None:
        """Every submodule holds what it held, and nothing more.

        Raises:
            CheckFailed: It does not; the sentence names the first entry that differs.
        """
        now = Attributes.of(model).entries
        odd = [path for path in (*self.entries, *now) if (path in now) != (path in self.entries)]
        if odd:
            verb = "left behind" if odd[0] in now else "took away"
            raise CheckFailed(f"{step} {verb} the attribute {odd[0]}")
        for path, wanted in self.entries.items():
            if not _same(wanted, now[path]):
                raise CheckFailed(f"{step} changed the attribute {path}")


def _flat(value: Any, path: str, depth: int) -> Iterator[tuple[str, Any]]:
    """The leaves of a value; a container is a leaf by its class and its keys, too."""
    if isinstance(value, dict):
        keys = list(value)
        yield path, (type(value), keys)
        for key in keys:
            joined = f"{path}.{key}" if isinstance(key, str) else f"{path}[{key!r}]"
            yield from _flat(value[key], joined, depth)
    elif isinstance(value, list | tuple):
        yield path, (type(value), len(value))
        for place, entry in enumerate(value):
            yield from _flat(entry, f"{path}[{place}]", depth)
    elif _has_attributes(value) and depth < _DEEPEST:
        yield path, (type(value), ())
        yield from _flat(vars(value), f"{path}.__dict__", depth + 1)
    else:
        yield path, value


def _has_attributes(value: Any) -> bool:
    leaf = (*_ONE_OBJECT, Tensor, np.ndarray)
    return not isinstance(value, leaf) and isinstance(getattr(value, "__dict__", None), dict)


def _kept(value: Any) -> Any:
    """What a leaf is compared by; the object beside it keeps its id from being given away."""
    if isinstance(value, Tensor):
        return value, value.detach().clone()
    if isinstance(value, np.ndarray):
        return value, value.copy()
    if isinstance(value, set):
        return type(value), frozenset(value)
    return value


def _same(wanted: Any, found: Any) -> bool:
    if type(wanted) is not type(found):
        return False
    if not isinstance(wanted, tuple) or len(wanted) != 2:
        return wanted is found or _equal(wanted, found)
    (left, before), (right, after) = wanted, found
    if isinstance(before, Tensor):
        return left is right and same_bits(before, after)
    if isinstance(before, np.ndarray):
        return left is right and before.tobytes() == after.tobytes()
    return bool(left == right and before == after)


def _equal(wanted: Any, found: Any) -> bool:
    if isinstance(wanted, _ONE_OBJECT):
        return False
    return bool(wanted == found)
