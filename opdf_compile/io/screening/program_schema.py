"""Walk the JSON of an exported program with torch's own schema, and check every text in it.

torch fills its schema from the JSON without looking at types: a text may arrive where a number is
declared, and a text that becomes Python source (names of nodes, of inputs, of parameters) is pasted
as it is: torch.fx generates source from the graph while the file loads. Here every value must have
exactly the declared type, and every text the form that its place allows.

rules.py says which texts become code, and what each must look like.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from enum import Enum
from functools import partial
from typing import Any

import torch

from opdf_compile.io.screening.rules import Check, text_rule
from opdf_compile.io.screening.syntax import NotPlain


class OtherSchema(ValueError):
    """A program has a schema that this torch does not read; the message says which."""


def check_program(document: object) -> None:
    """Check `models/NAME.json` of an archive.

    Raises:
        NotPlain: With the place and what was found there.
        OtherSchema: It was written with another major version of the schema.
    """
    from torch._export.serde import schema

    _check_version(document, schema.SCHEMA_VERSION)
    _checker(schema.ExportedProgram)(document)


def _check_version(document: object, known: tuple[int, ...]) -> None:
    """Before anything else: another major version may look different everywhere."""
    version = document.get("schema_version") if isinstance(document, dict) else None
    major = version.get("major") if isinstance(version, dict) else None
    if type(major) is not int or major in (0, known[0]):
        return  # Whatever is malformed about it, the schema's own check says.
    cure = "update torch" if major > known[0] else "export it again with this torch"
    raise OtherSchema(
        f"was written with version {major} of torch's program schema, torch {torch.__version__} "
        f"reads version {known[0]}; {cure}"
    )


def itemsize_of(scalar_type: object) -> int | None:
    """Bytes of one item of a dtype as the schema numbers it; None where torch has no such dtype."""
    from torch._export.serde.serialize import _SERIALIZE_TO_TORCH_DTYPE

    found = _SERIALIZE_TO_TORCH_DTYPE.get(scalar_type)
    return None if found is None else int(found.itemsize)


def check_payloads(document: object) -> dict[str, Any]:
    """Check a `*_weights_config.json` or `*_constants_config.json`; return its entries.

    Raises:
        NotPlain: With the place and what was found there.
    """
    from torch._export.serde import schema

    _checker(schema.PayloadConfig)(document)
    assert isinstance(document, dict)
    entries: dict[str, Any] = document.get("config", {})
    return entries


@functools.cache
def _checker(hint: Any) -> Check:
    """A function that accepts exactly the JSON values of one declared type."""
    hint = _resolve(hint)
    origin, parameters = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        (inner,) = (p for p in parameters if p is not type(None))
        return partial(_optional, inner)
    if origin is list:
        return partial(_list, parameters[0])
    if origin is dict:
        return partial(_mapping, parameters[1])
    if isinstance(hint, type) and issubclass(hint, Enum):
        return partial(_number, int, hint.__name__)
    if _is_union(hint):
        return partial(_one_of, hint)
    if dataclasses.is_dataclass(hint):
        return partial(_record, hint)
    if hint is float:
        return _real
    if hint in (int, bool, str):
        return partial(_number, hint, hint.__name__)
    raise NotPlain(f"this version of torch declares {hint!r}, which this screening does not know")


def _resolve(hint: Any) -> Any:
    from torch._export.serde import schema

    if isinstance(hint, typing.ForwardRef):
        hint = hint.__forward_arg__
    if isinstance(hint, str):
        hint = getattr(schema, hint)
    if typing.get_origin(hint) is typing.Annotated:
        return _resolve(typing.get_args(hint)[0])
    return hint


def _is_union(hint: Any) -> bool:
    from torch._export.serde.union import _Union

    return isinstance(hint, type) and issubclass(hint, _Union)


@functools.cache
def _fields(record: Any) -> dict[str, tuple[Any, Check | None]]:
    """The declared fields of a class, each with the rule for its text.

    The checkers themselves are looked up at use: the schema is recursive (a graph holds graphs).
    """
    from torch._export.serde import schema

    hints = typing.get_type_hints(record, globalns=vars(schema), include_extras=False)
    return {
        name: (hint, text_rule(record.__name__, name, hint))
        for name, hint in hints.items()
        if not name.startswith("_") and typing.get_origin(hint) is not typing.ClassVar
    }


def _field(record: Any, name: str, hint: Any, rule: Check | None, value: Any) -> None:
    _checker(hint)(value)
    if rule is None or value is None:
        return
    try:
        rule(value)
    except NotPlain as problem:
        raise NotPlain(f"{record.__name__}.{name}: {problem}") from problem


def _record(record: Any, value: Any) -> None:
    if type(value) is not dict:
        raise NotPlain(f"a {type(value).__name__} stands where a {record.__name__} belongs")
    # Unknown fields are ignored, as torch ignores them.
    for name, (hint, rule) in _fields(record).items():
        if name in value:
            _field(record, name, hint, rule, value[name])


def _one_of(record: Any, value: Any) -> None:
    if type(value) is not dict or len(value) != 1:
        raise NotPlain(f"{record.__name__} needs exactly one alternative")
    (name,) = value
    if name not in _fields(record):
        raise NotPlain(f"{record.__name__} has no alternative {str(name)[:60]!r}")
    hint, rule = _fields(record)[name]
    _field(record, name, hint, rule, value[name])


def _optional(hint: Any, value: Any) -> None:
    if value is not None:
        _checker(hint)(value)


def _list(hint: Any, value: Any) -> None:
    if type(value) is not list:
        raise NotPlain(f"a {type(value).__name__} stands where a list belongs")
    for item in value:
        _checker(hint)(item)


def _mapping(hint: Any, value: Any) -> None:
    if type(value) is not dict:
        raise NotPlain(f"a {type(value).__name__} stands where a mapping belongs")
    for item in value.values():
        _checker(hint)(item)


def _number(kind: type, name: str, value: Any) -> None:
    if type(value) is not kind:
        raise NotPlain(f"a {type(value).__name__} stands where {name} belongs")


def _real(value: Any) -> None:
    # JSON knows no infinities: torch writes them as these texts.
    if type(value) not in (int, float) and value not in ("Infinity", "-Infinity", "NaN"):
        raise NotPlain(f"{str(value)[:60]!r} stands where a number belongs")


def parse_json(data: bytes) -> object:
    """Parse JSON from a file.

    Raises:
        NotPlain: Not JSON, or nested deeper than Python can hold.
    """
    try:
        return json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise NotPlain(f"it is no JSON ({type(error).__name__})") from error
