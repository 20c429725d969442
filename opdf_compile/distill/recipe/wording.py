"""The schema in words: what a key wants, for errors and for the reference in the docs."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from opdf_compile.distill.recipe.schema import Recipe

_TYPES = {
    "string": "a text in quotes",
    "boolean": "true or false",
    "object": "a table",
}


@dataclass(frozen=True)
class Key:
    """One key of a section, in words.

    Attributes:
        name: As it is written in the file.
        wanted: Which values it takes.
        default: As TOML, or "" where there is none.
        required: Whether it must be there.
        description: What it means.
        example: A value as TOML.
    """

    name: str
    wanted: str
    default: str
    required: bool
    description: str
    example: str


@functools.cache
def sections() -> Mapping[str, Mapping[str, Key]]:
    """The keys of every section; a loss is "loss.KIND", a table in a section "SECTION.KEY"."""
    whole = Recipe.model_json_schema()
    found: dict[str, Mapping[str, Key]] = {}
    for name, schema in whole["properties"].items():
        for title, section in _sections(name, schema, whole["$defs"]):
            found[title] = _keys(section)
    return found


def section_names() -> tuple[str, ...]:
    """The top-level names of the file."""
    return tuple(dict.fromkeys(title.partition(".")[0] for title in sections()))


def loss_kinds() -> tuple[str, ...]:
    """The kinds of losses."""
    return tuple(title.partition(".")[2] for title in sections() if title.startswith("loss."))


def as_toml(value: Any) -> str:
    """A simple value as TOML; JSON's texts, numbers, booleans and lists are TOML's too."""
    if isinstance(value, dict):
        pairs = (f"{as_toml(key)} = {as_toml(item)}" for key, item in value.items())
        return "{" + ", ".join(pairs) + "}"
    return json.dumps(value, ensure_ascii=False)


def _sections(
    name: str, schema: dict[str, Any], known: dict[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    if schema.get("type") == "array":
        for kind, reference in schema["items"]["discriminator"]["mapping"].items():
            yield f"{name}.{kind}", _resolve({"$ref": reference}, known)
        return
    section = _resolve(schema, known)
    yield name, section
    for key, inner in section["properties"].items():
        found = _resolve(inner, known)
        if "properties" in found:
            yield f"{name}.{key}", found


def _resolve(schema: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    for option in (schema, *schema.get("anyOf", ()), *schema.get("allOf", ())):
        if "$ref" in option:
            resolved: dict[str, Any] = known[option["$ref"].rpartition("/")[2]]
            return resolved
    return schema


def _keys(section: dict[str, Any]) -> dict[str, Key]:
    required = section.get("required", ())
    return {
        name: Key(
            name,
            wanted(schema),
            _default(schema),
            name in required,
            schema.get("description", ""),
            as_toml(schema["examples"][0]) if "examples" in schema else _default(schema),
        )
        for name, schema in section["properties"].items()
    }


def _default(schema: dict[str, Any]) -> str:
    value = schema.get("default")
    return "" if value is None else as_toml(value)


def wanted(schema: dict[str, Any]) -> str:
    """What a JSON schema takes, as a phrase."""
    if "anyOf" in schema:
        return " or ".join(wanted(o) for o in schema["anyOf"] if o.get("type") != "null")
    if "$ref" in schema:
        return "a table"
    if "const" in schema:
        return as_toml(schema["const"])
    if "enum" in schema:
        return " or ".join(map(as_toml, schema["enum"]))
    kind = schema.get("type", "")
    if kind in ("integer", "number"):
        return ("a whole number" if kind == "integer" else "a number") + _limits(schema)
    if kind == "array":
        return "a list of texts"
    if kind == "object" and dict(schema.get("additionalProperties") or {}).get("type") == "string":
        return "a table of texts"
    return _TYPES.get(kind, "a value")


_LIMITS = {
    "minimum": "of {:g} or more",
    "exclusiveMinimum": "above {:g}",
    "maximum": "of at most {:g}",
    "exclusiveMaximum": "below {:g}",
}


def _limits(schema: dict[str, Any]) -> str:
    if "minimum" in schema and "maximum" in schema:
        return f" from {schema['minimum']:g} to {schema['maximum']:g}"
    words = [text.format(schema[name]) for name, text in _LIMITS.items() if name in schema]
    return f" {' and '.join(words)}" if words else ""
