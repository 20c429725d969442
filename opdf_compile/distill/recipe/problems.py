"""What pydantic found, as one sentence that a user can act on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from opdf_compile.distill.recipe.toml_lines import Path
from opdf_compile.distill.recipe.wording import Key, loss_kinds, section_names, sections
from opdf_compile.spelling import nearest


@dataclass(frozen=True)
class Problem:
    """Something wrong in a recipe.

    Attributes:
        path: Where; its line is looked up.
        sentence: What was found, what was wanted, the remedy.
    """

    path: Path
    sentence: str


def of_pydantic(errors: Sequence[Mapping[str, Any]], data: Mapping[str, Any]) -> Problem:
    """The problem to show of all that pydantic found.

    A misspelt key comes first: it is often the reason why another one is missing.
    """
    first = min(errors, key=lambda error: error["type"] != "extra_forbidden")
    path = _real(first["loc"], data)
    value = _get(data, path)
    match first["type"]:
        case "extra_forbidden":
            return _unknown(path, data)
        case "missing":
            return _missing((*path, str(first["loc"][-1])), data)
        case "union_tag_not_found":
            return Problem(path, f'this loss has no kind, {_kinds()}; add kind = "hinton"')
        case "union_tag_invalid":
            found = value.get("kind")
            return Problem((*path, "kind"), f"the loss kind is {_show(found)}, {_kinds(found)}")
    if len(path) == 1 or path[-1] in section_names() or isinstance(path[-1], int):
        return _shape(path, value)
    return _wrong(path, value, data)


def suggestion(found: Any, known: Iterable[str], otherwise: str = "") -> str:
    """The remedy with its semicolon: the nearest known word, or else what the caller advises."""
    close = nearest(str(found), known)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; {otherwise}" if otherwise else ""


def title_of(path: Path, data: Mapping[str, Any]) -> tuple[str, str]:
    """The section of a path: as it is written in the file, and as `sections` names it."""
    name = str(path[0])
    if name == "loss" and len(path) > 1:
        kind = _get(data, path[:2]).get("kind", "")
        return f"the {kind} loss", f"loss.{kind}"
    if len(path) > 2 and f"{name}.{path[1]}" in sections():
        return f"{path[1]} in [{name}]", f"{name}.{path[1]}"
    return f"[{name}]", name


def _real(loc: tuple[str | int, ...], data: Any) -> Path:
    """The part of pydantic's location that is in the file: it also names variants of unions."""
    path: list[str | int] = []
    for part in loc:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            continue
        path.append(part)
    return tuple(path)


def _get(data: Any, path: Path) -> Any:
    for part in path:
        data = data[part]
    return data


def _unknown(path: Path, data: Mapping[str, Any]) -> Problem:
    name = str(path[-1])
    if len(path) == 1:
        names = section_names()
        is_table = isinstance(data[name], dict | list)
        what = f"[{name}] is no section" if is_table else f"{name} stands in no section"
        advice = suggestion(name, names, "put it into one of them or remove it")
        return Problem(path, f"{what} of a recipe, wanted {', '.join(names)}{advice}")
    written, title = title_of(path, data)
    keys = sections()[title]
    homes = [other for other, its in sections().items() if name in its and other != title]
    advice = suggestion(name, keys)
    if not advice and homes:
        kinds = [
            f"a {home.partition('.')[2]} loss" if home.startswith("loss.") else f"[{home}]"
            for home in homes
        ]
        advice = f"; it belongs to {' or '.join(kinds[:3])}: move or remove it"
    return Problem(
        path,
        f"{written} has no key {name}, wanted one of {', '.join(keys)}{advice or '; remove it'}",
    )


def _missing(path: Path, data: Mapping[str, Any]) -> Problem:
    name = str(path[-1])
    if len(path) == 1:
        example = "[[loss]]" if name == "loss" else f"[{name}]"
        return Problem(
            (),
            f"the section {example} is missing, wanted one that says {_PURPOSE[name]}; "
            f"add {example}, or start from opdf-compile distill --init",
        )
    written, title = title_of(path, data)
    key = sections()[title][name]
    return Problem(
        path[:-1],
        f"{written} has no {name}, wanted {key.wanted} ({_lower(key.description)}); "
        f"add {name} = {key.example}",
    )


_PURPOSE = {
    "student": "which network ships",
    "data": "what it learns from",
    "loss": "what it is trained on",
    "optimizer": "how it is trained",
    "training": "how long it is trained",
}


def _shape(path: Path, value: Any) -> Problem:
    """A section that is no table, or a table where a list of them is wanted."""
    name = str(path[0])
    many = name == "loss"
    brackets = f"[[{name}]]" if many else f"[{name}]"
    if many and value == []:
        return Problem(path, f"loss is empty, wanted at least one; add {brackets} with its kind")
    found = f"a table [{name}]" if isinstance(value, dict) else _show(value)
    if isinstance(value, list) and not many:
        found = f"a list of tables [[{name}]]"
    wanted = "a list of tables" if many else "one table"
    return Problem(
        path, f"{name} is {found}, wanted {wanted}; write {brackets} and its keys below it"
    )


def _wrong(path: Path, value: Any, data: Mapping[str, Any]) -> Problem:
    written, title = title_of(path, data)
    inside = path[2] if "." in title else path[1]
    key: Key | None = sections()[title].get(str(inside))
    if key is None:
        return Problem(path, f"{inside} in {written} is {_show(value)}, wanted another value")
    if path == ("optimizer", "lr") and value == "matched":
        return _matched(path, data["optimizer"].get("plain_lr", 0.001))
    options = [part.strip('"') for part in key.wanted.split(" or ") if part.startswith('"')]
    advice = suggestion(value, options, f"write {inside} = {key.example}")
    sentence = f"{inside} in {written} is {_show(value)}, wanted {key.wanted}{advice}"
    return Problem(path, sentence)


def _matched(path: Path, rate: Any) -> Problem:
    """Recipes of 0.1 could ask for steps as long as the plain student's."""
    return Problem(
        path,
        'lr in [optimizer] is "matched", which is no longer there, as steps of equal length were a '
        f"worse start than the plain student's rate, wanted a number above 0; write lr = {rate}, "
        "without plain_lr, and let opdf-compile advise look for a better one",
    )


def _kinds(found: Any = None) -> str:
    kinds = loss_kinds()
    advice = "" if found is None else suggestion(found, kinds, 'write kind = "hinton"')
    return f"wanted one of {', '.join(kinds)}{advice}"


def _show(value: Any) -> str:
    """A value as it stands in the file, cut where it is long."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a table"
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _lower(text: str) -> str:
    text = text.rstrip(".")
    return text[:1].lower() + text[1:] if not text.startswith("MODEL") else text
