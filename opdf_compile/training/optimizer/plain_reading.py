"""Plain values read: what a state holds becomes what the optimizer that loads it keeps."""

from __future__ import annotations

import json
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from opdf_compile.errors import InputError, first_line
from opdf_compile.training.optimizer.plain_values import (
    DEFAULTS,
    DICTS,
    LISTS,
    MARK,
    NAMED,
    declared,
    hash_of,
    qualified_name,
)

_BROKEN = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class PlainReader:
    """Makes values of plain ones.

    `parameters` are the optimizer's own by what they are called.
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
            raise InputError(
                f"the state holds {mark!r} in a form that cannot be read "
                f"({first_line(error, 100)}); load an older state of the run"
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
        if kind in LISTS:
            return LISTS[kind](self._items(value, present))
        if kind == "dict":
            return self._dict(value, whole, present)
        if kind == "deque":
            return deque(self._items(value, present), maxlen=whole["maxlen"])
        if kind == "class":
            return self._tensor(value, whole)
        if kind in ("bytes", "named"):
            return _setting(kind, value, present)
        if kind == "enum":
            return _setting("named", value, type(present))[whole["member"]]
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
            return defaultdict(DEFAULTS[whole["default"]], read)
        return DICTS[whole["kind"]](read)

    def _tensor(self, name: str, whole: dict[str, Any]) -> Tensor:
        kind = declared()[name]
        parts = {part: self.read(value) for part, value in whole["parts"].items()}
        size, stride = torch.Size(whole["size"]), tuple(whole["stride"])
        made = kind.__tensor_unflatten__(parts, self.read(whole["context"]), size, stride)  # type: ignore[attr-defined]
        if not isinstance(made, kind):
            raise ValueError(f"{name} made a {type(made).__name__}")
        return made


def _at(present: Any, key: Any) -> Any:
    return present.get(key) if isinstance(present, Mapping) else None


def _setting(kind: str, wanted: str, present: Any) -> Any:
    """What the optimizer holds there itself, if it is what the file names."""
    known = type(present) is bytes if kind == "bytes" else isinstance(present, NAMED)
    found = (hash_of if kind == "bytes" else qualified_name)(present) if known else None
    if found != wanted:
        raise InputError(
            f"the state was saved with the setting {str(wanted)[:60]} of the wrapped optimizer, "
            f"found {str(found)[:60]} here; build the optimizer as it was built then"
        )
    return present


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"{name[:40]!r} is no dtype")
    return found
