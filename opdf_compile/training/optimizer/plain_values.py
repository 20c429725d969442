"""Whatever an optimizer keeps, as plain values, and back.

    plain value  =  tensor | number | text | None | list of them | dict of them by text
    all else     =  {"$kind": plain value, ..}       a tuple, a set, a dict by numbers, a dtype, ..

So torch.load reads a state with weights_only=True, and a checkpoint is JSON beside safetensors.

What is no value but a setting of the class (bytes, a function, an enum) is written as its name or
hash only, and taken from the optimizer that loads it: a file cannot choose what code is run.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import BuiltinFunctionType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from opdf_compile.errors import InputError
from opdf_compile.training.hoisted.binding import is_sharded

# What plain values can stand for: the kinds that the writer marks and the reader knows.
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

_PLAIN = (bool, int, float, str, type(None))
_TENSORS = (Tensor, nn.Parameter)
_ODD = (bytes, Enum, set, frozenset, torch.dtype, torch.device, *NAMED)


@dataclass(frozen=True)
class PlainWriter:
    """Makes plain values.

    Args:
        owner: Whose values they are, for the sentence.
        labels: By id what the optimizer's own parameters are called; they are written as that.
        settings: Whether bytes, functions and enums may be written by hash and name.
    """

    owner: str
    labels: Mapping[int, str] = field(default_factory=dict)
    settings: bool = False

    def write(self, value: Any, place: str) -> Any:
        """The plain value of a value.

        Raises:
            InputError: It is no value; the sentence says where it lies.
        """
        if type(value) in _PLAIN:
            return value
        if isinstance(value, Tensor):
            return self._tensor(value, place)
        if type(value) is list:
            return self._items(value, place)
        if isinstance(value, dict):
            return self._dict(value, place)
        marked = self._marked(value, place)
        if marked is None:
            raise InputError(
                f"{self.owner} keeps a {type(value).__name__} in {place}, which no state holds, "
                "wanted tensors, numbers, texts, and lists, tuples, sets and dicts of them; wrap "
                "another optimizer, or train without saving"
            )
        return marked

    def key(self, key: Any, place: str) -> str:
        """A key as text: texts as they are, all else as JSON behind a mark."""
        if type(key) is str and not key.startswith(MARK):
            return key
        return MARK + json.dumps(self.write(key, place))

    def _items(self, values: Any, place: str) -> list[Any]:
        return [self.write(value, f"{place}[{number}]") for number, value in enumerate(values)]

    def _dict(self, value: dict[Any, Any], place: str) -> Any:
        kind = type(value).__name__
        inside = {key: self.write(item, f"{place}[{key!r}]") for key, item in value.items()}
        if type(value) is dict and all(type(k) is str and k[:1] != MARK for k in value):
            return inside
        pairs = [[self._in_pair(k, place), item] for k, item in inside.items()]
        if DICTS.get(kind) is type(value):
            return {"$dict": pairs, "kind": kind}
        factory = value.default_factory if type(value) is defaultdict else None
        name = getattr(factory, "__name__", "")
        if factory is None or DEFAULTS.get(name) is not factory:
            raise InputError(
                f"{self.owner} keeps a {kind} in {place}, which no state holds, wanted a dict; "
                "wrap another optimizer, or train without saving"
            )
        return {"$dict": pairs, "kind": kind, "default": name}

    def _in_pair(self, key: Any, place: str) -> Any:
        if isinstance(key, Tensor) and id(key) not in self.labels:
            raise InputError(
                f"{self.owner} keeps something in {place} for a tensor of shape "
                f"{tuple(key.shape)} that it does not step, which cannot be found again, wanted "
                "what belongs to its parameters; wrap another optimizer, or train without saving"
            )
        return self.write(key, f"a key of {place}")

    def _marked(self, value: Any, place: str) -> Any:
        kind = type(value).__name__
        if LISTS.get(kind) is type(value):
            return {f"${kind}": self._items(value, place)}
        if type(value) is deque:
            return {"$deque": self._items(value, place), "maxlen": value.maxlen}
        if type(value) is complex:
            return {"$complex": [value.real, value.imag]}
        if isinstance(value, torch.dtype | torch.device):
            return {f"${kind}": str(value).removeprefix("torch.")}
        if isinstance(value, np.ndarray | np.generic) and np.asarray(value).dtype.kind in "biufc":
            return {"$array": torch.from_numpy(np.array(value))}
        if self.settings and type(value) is bytes:
            return {"$bytes": hash_of(value)}
        if self.settings and isinstance(value, Enum):
            return {"$enum": qualified_name(type(value)), "member": value.name}
        if self.settings and isinstance(value, NAMED) and "<" not in value.__qualname__:
            return {"$named": qualified_name(value)}
        return None

    def _tensor(self, value: Tensor, place: str) -> Any:
        if id(value) in self.labels:
            return {"$parameter": self.labels[id(value)]}
        if type(value) in _TENSORS and value.layout is torch.strided and not value.is_quantized:
            return value.detach()
        if is_sharded(value):
            return value  # Sharded; a checkpoint gathers it.
        name = qualified_name(type(value))
        if name not in declared() or not hasattr(value, "__tensor_flatten__"):
            raise InputError(
                f"{self.owner} keeps a tensor of the class {type(value).__name__} and the layout "
                f"{str(value.layout).removeprefix('torch.')} in {place}, which no state holds, "
                "wanted plain tensors, or a class of tensors with __tensor_flatten__ that "
                "torch.serialization.add_safe_globals names; call that, or wrap another optimizer"
            )
        parts, context = value.__tensor_flatten__()
        return {
            "$class": name,
            "parts": {part: self.write(getattr(value, part), f"{place}.{part}") for part in parts},
            "context": self.write(context, place),
            "size": list(value.size()),
            "stride": list(value.stride()),
        }


def written_options(group: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a param group as a state holds them: what JSON knows stays as it is."""
    writer = PlainWriter("a param group", settings=True)
    return {
        key: writer.write(value, key) if isinstance(value, _ODD) else value
        for key, value in group.items()
        if key != "params"
    }


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
