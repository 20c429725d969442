"""Whatever an optimizer keeps, as plain values, and back.

    plain value  =  tensor | number | text | None | list of them | dict of them by text
    all else     =  {"$kind": plain value, ..}       a tuple, a set, a dict by numbers, a dtype, ..

So torch.load reads a state with weights_only=True, and a checkpoint is JSON beside safetensors.

What is no value but a setting of the class (bytes, a function) is written as its name or hash only,
and taken from the optimizer that loads it: a file cannot choose what code is run.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import BuiltinFunctionType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from opdf_compile.errors import InputError

MARK = "$"
_PLAIN = (bool, int, float, str, type(None))
_TENSORS = (Tensor, nn.Parameter)
_BROKEN = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
_LISTS: dict[str, Callable[[Any], Any]] = {
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "Size": torch.Size,
}
_DICTS: dict[str, type] = {"dict": dict, "OrderedDict": OrderedDict, "Counter": Counter}
_DEFAULTS: dict[str, Callable[[], Any]] = {c.__name__: c for c in (dict, list, set, int, float)}
_NAMED = (type, FunctionType, BuiltinFunctionType)
_SETTINGS = (bytes, *_NAMED)


@dataclass(frozen=True)
class Writer:
    """Makes plain values.

    Args:
        owner: Whose values they are, for the sentence.
        labels: By id what the optimizer's own parameters are called; they are written as that.
        settings: Whether bytes and functions may be written by hash and name.
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
        if _DICTS.get(kind) is type(value):
            return {"$dict": pairs, "kind": kind}
        factory = value.default_factory if type(value) is defaultdict else None
        name = getattr(factory, "__name__", "")
        if factory is None or _DEFAULTS.get(name) is not factory:
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
        if _LISTS.get(kind) is type(value):
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
            return {"$bytes": _hash(value)}
        if self.settings and isinstance(value, _NAMED) and "<" not in value.__qualname__:
            return {"$named": _name(value)}
        return None

    def _tensor(self, value: Tensor, place: str) -> Any:
        if id(value) in self.labels:
            return {"$parameter": self.labels[id(value)]}
        if type(value) in _TENSORS and value.layout is torch.strided and not value.is_quantized:
            return value.detach()
        if hasattr(value, "device_mesh"):
            return value  # Sharded; a checkpoint gathers it.
        name = _name(type(value))
        if name not in _declared() or not hasattr(value, "__tensor_flatten__"):
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


@dataclass(frozen=True)
class Reader:
    """Makes values of plain ones.

    Args:
        parameters: The optimizer's own by what they are called.
    """

    parameters: Mapping[str, Tensor] = field(default_factory=dict)

    def read(self, value: Any, present: Any = None) -> Any:
        """The inverse of `Writer.write`; what is no plain value is passed on.

        Args:
            value: A plain value.
            present: What the optimizer that loads it holds in that place, for its settings.

        Raises:
            InputError: It is none, or names what this optimizer does not hold.
        """
        if type(value) is list:
            return self._items(value, present)
        if type(value) is not dict:
            return value
        mark = next((k for k in value if type(k) is str and k.startswith(MARK)), None)
        if mark is None:
            return {key: self.read(item, _at(present, key)) for key, item in value.items()}
        try:
            return self._marked(mark[1:], value[mark], value, present)
        except _BROKEN as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:100]
            raise InputError(
                f"the state holds {mark!r} in a form that cannot be read ({reason}); load an older "
                "state of the run"
            ) from error

    def key(self, text: Any) -> Any:
        """The inverse of `Writer.key`."""
        if type(text) is not str or not text.startswith(MARK):
            return text
        return self.read(json.loads(text[1:]))

    def _items(self, values: list[Any], present: Any) -> list[Any]:
        held = list(present) if isinstance(present, list | tuple) else []
        held += [None] * (len(values) - len(held))
        return [self.read(value, there) for value, there in zip(values, held, strict=False)]

    def _marked(self, kind: str, value: Any, whole: dict[str, Any], present: Any) -> Any:
        if kind in _LISTS:
            return _LISTS[kind](self._items(value, present))
        if kind == "dict":
            return self._dict(value, whole, present)
        if kind == "deque":
            return deque(self._items(value, present), maxlen=whole["maxlen"])
        if kind == "class":
            return self._tensor(value, whole)
        if kind in ("bytes", "named"):
            return _setting(kind, value, present)
        simple: dict[str, Callable[[Any], Any]] = {
            "parameter": self.parameters.__getitem__,
            "complex": lambda pair: complex(*pair),
            "device": torch.device,
            "dtype": _dtype,
            "array": lambda tensor: tensor.cpu().numpy().copy()[()],
        }
        return simple[kind](value)

    def _dict(self, pairs: list[Any], whole: dict[str, Any], present: Any) -> Any:
        read: dict[Any, Any] = {}
        for key, item in pairs:
            found = self.read(key)
            read[found] = self.read(item, _at(present, found))
        if "default" in whole:
            return defaultdict(_DEFAULTS[whole["default"]], read)
        return _DICTS[whole["kind"]](read)

    def _tensor(self, name: str, whole: dict[str, Any]) -> Tensor:
        kind = _declared()[name]
        parts = {part: self.read(value) for part, value in whole["parts"].items()}
        size, stride = torch.Size(whole["size"]), tuple(whole["stride"])
        made = kind.__tensor_unflatten__(parts, self.read(whole["context"]), size, stride)  # type: ignore[attr-defined]
        if not isinstance(made, kind):
            raise ValueError(f"{name} made a {type(made).__name__}")
        return made


def options_of(group: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a param group as a state holds them: settings by name, all else as it is."""
    writer = Writer("a param group", settings=True)
    return {
        key: writer.write(value, key) if isinstance(value, _SETTINGS) else value
        for key, value in group.items()
        if key != "params"
    }


def _at(present: Any, key: Any) -> Any:
    return present.get(key) if isinstance(present, Mapping) else None


def _setting(kind: str, wanted: str, present: Any) -> Any:
    """What the optimizer holds there itself, if it is what the file names."""
    known = type(present) is bytes if kind == "bytes" else isinstance(present, _NAMED)
    found = (_hash if kind == "bytes" else _name)(present) if known else None
    if found != wanted:
        raise InputError(
            f"the state was saved with the setting {str(wanted)[:60]} of the wrapped optimizer, "
            f"found {str(found)[:60]} here; build the optimizer as it was built then"
        )
    return present


def _declared() -> dict[str, type[Tensor]]:
    """Classes of tensors that their libraries declared safe to be loaded, by name."""
    found = torch.serialization.get_safe_globals()
    given = [item[0] if isinstance(item, tuple) else item for item in found]
    return {_name(c): c for c in given if isinstance(c, type) and issubclass(c, Tensor)}


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"{name[:40]!r} is no dtype")
    return found


def _hash(value: bytes) -> str:
    return hashlib.sha256(value).hexdigest()


def _name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"
