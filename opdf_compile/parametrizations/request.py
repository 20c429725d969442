"""How a parametrization is asked for: its name, and its options in brackets.

    request  =  NAME  |  NAME(key=value, key=value)          spectral(cores=6, outer_rate=2.5)
    value    =  whole number  |  number  |  true  |  false  |  word

It is read word by word and nothing of it is run. What options there are says the one that has them,
by a mapping of names to `Option`; nothing here knows what kind of thing it is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from opdf_compile.errors import PlanError
from opdf_compile.spelling import did_you_mean

Value = int | float | bool | str

_REQUEST = re.compile(r"\s*([^()\s][^()]*?)\s*(?:\(([^()]*)\)\s*)?", re.DOTALL)
_KEY = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_WHOLE = re.compile(r"[+-]?\d{1,18}", re.ASCII)
_NUMBER = re.compile(r"[+-]?(\d{1,18}\.?\d{0,18}|\.\d{1,18})(e[+-]?\d{1,4})?", re.ASCII | re.I)
_WORD = re.compile(r"[A-Za-z_][\w.-]*", re.ASCII)
_WANTED = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}
_MOST_SHOWN = 80


@dataclass(frozen=True)
class Option:
    """One option: what it may be.

    Attributes:
        kind: int, float, bool or str; or the words to choose from.
        default: What it is where nobody gives it; None where that follows from the weight.
        doc: What it means, on one line.
    """

    kind: type[Value] | tuple[str, ...]
    default: Value | None
    doc: str

    @property
    def wanted(self) -> str:
        """What it may be, in words: "a whole number", "one of all, none"."""
        if isinstance(self.kind, tuple):
            return f"one of {', '.join(self.kind)}"
        return _WANTED[self.kind]

    def written(self, key: str) -> str:
        """How it is given: ``expansion=4``, ``rank=..`` where its default follows from a weight."""
        if isinstance(self.kind, tuple):
            return f"{key}={'|'.join(self.kind)}"
        return f"{key}={'..' if self.default is None else _written(self.default)}"

    def accepts(self, value: Value) -> bool:
        """Whether it may be this value; a whole number is a number, true is none."""
        if isinstance(self.kind, tuple):
            return value in self.kind
        if self.kind is float:
            return (
                isinstance(value, int | float) and type(value) is not bool and math.isfinite(value)
            )
        return type(value) is self.kind


@dataclass(frozen=True)
class Request:
    """What is asked for; `str` writes it as `parse` reads it.

    Attributes:
        name: Of the parametrization.
        options: Those that were given.
    """

    name: str
    options: Mapping[str, Value] = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        given = ", ".join(f"{key}={_written(value)}" for key, value in self.options.items())
        return f"{self.name}({given})" if given else self.name

    @classmethod
    def parse(cls, text: str) -> Self:
        """The request that a text says.

        Raises:
            PlanError: It says none.

        Example:
            >>> Request.parse("spectral(cores=6, outer_rate=2.5)").options
            {'cores': 6, 'outer_rate': 2.5}
        """
        found = _REQUEST.fullmatch(text) if isinstance(text, str) else None
        if found is None:
            raise PlanError(
                f"{_shown(text)} asks for nothing that can be read, wanted NAME or "
                "NAME(key=value, key=value), such as 'mpo(cores=5)'"
            )
        name, inside = found[1], found[2] or ""
        given = {}
        for part in inside.split(",") if inside.strip() else ():
            key, equals, value = (word.strip() for word in part.partition("="))
            if not equals or not _KEY.fullmatch(key):
                raise PlanError(
                    f"{_shown(text)} has {_shown(part.strip())} between its brackets, wanted "
                    "key=value; write NAME(key=value, key=value)"
                )
            if key in given:
                raise PlanError(f"{_shown(text)} gives {key} twice, wanted it once; remove one")
            given[key] = _value(text, key, value)
        return cls(name, given)

    def checked(self, known: Mapping[str, Option]) -> Self:
        """The request itself, with every option one of those known and of its kind.

        Raises:
            PlanError: An option is not known, or its value is of another kind.
        """
        for key, value in self.options.items():
            if key not in known:
                raise PlanError(
                    f"{self.name} has no option {key!r}{did_you_mean(key, known)}; it has "
                    f"{', '.join(known) or 'none'}"
                )
            if not known[key].accepts(value):
                raise PlanError(
                    f"the option {key} of {self.name} is {_written(value)}, wanted "
                    f"{known[key].wanted}: {known[key].doc}"
                )
        return self


def _value(text: str, key: str, value: str) -> Value:
    if value in ("true", "false"):
        return value == "true"
    if _WHOLE.fullmatch(value):
        return int(value)
    if _NUMBER.fullmatch(value):
        return float(value)
    if _WORD.fullmatch(value):
        return value
    raise PlanError(
        f"{_shown(text)} gives {key} the value {_shown(value)}, wanted a number, true, false or a "
        "word without quotes"
    )


def _written(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _shown(text: object) -> str:
    found = repr(text)
    return found if len(found) <= _MOST_SHOWN else f"{found[: _MOST_SHOWN - 4]}...'"
