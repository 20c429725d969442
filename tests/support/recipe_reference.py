"""The recipe's reference as Markdown, written from the schema: `docs/distill.md` holds it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import get_args

from pydantic import BaseModel

from opdf_compile.distill.recipe.loss_schema import LOSS_SECTIONS
from opdf_compile.distill.recipe.schema import Recipe
from opdf_compile.distill.recipe.wording import Key, sections


def recipe_reference() -> str:
    """One table per section, one row per key."""
    return "\n".join(_lines()).strip() + "\n"


def _lines() -> Iterator[str]:
    known = sections()
    for name in Recipe.model_fields:
        if name == "loss":
            yield from _loss_lines(known)
            continue
        yield from (f"### `[{name}]`", "", _purpose(name), "", *_table(known[name]))
        for title in known:
            if title.startswith(f"{name}."):
                inner = title.partition(".")[2]
                yield from (f"Inside `{inner} = {{..}}`:", "", *_table(known[title]))


def _loss_lines(known: Mapping[str, Mapping[str, Key]]) -> Iterator[str]:
    losses = {title: keys for title, keys in known.items() if title.startswith("loss.")}
    by_kind = {title.partition(".")[2]: keys for title, keys in losses.items()}
    yield from ("### `[[loss]]`", "", "What it is trained on; as many as you like.", "")
    yield from ("| kind | what it is |", "|---|---|")
    for section in LOSS_SECTIONS:
        kinds = " or ".join(f'`"{kind}"`' for kind in by_kind if kind in _kinds(section))
        yield f"| {kinds} | {_first_line(section.__doc__)} |"
    yield from ("", "| key | of | takes | default | means |", "|---|---|---|---|---|")
    owners: dict[Key, list[str]] = {}
    for kind, keys in by_kind.items():
        for key in keys.values():
            owners.setdefault(key, []).append(kind)
    for key, kinds_of_it in sorted(owners.items(), key=lambda item: -len(item[1])):
        if key.name != "kind":
            yield _row(
                key, "all" if len(kinds_of_it) == len(by_kind) else _of(kinds_of_it, by_kind)
            )
    yield ""


def _of(kinds: list[str], known: Mapping[str, object]) -> str:
    left = [kind for kind in known if kind not in kinds]
    return f"all but {left[0]}" if len(left) == 1 else ", ".join(kinds)


def _kinds(section: type[BaseModel]) -> tuple[str, ...]:
    return get_args(section.model_fields["kind"].annotation)


def _row(key: Key, *more: str) -> str:
    default = "must be given" if key.required else f"`{key.default}`" if key.default else ""
    cells = (f"`{key.name}`", *more, key.wanted, default, key.description)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _table(keys: Mapping[str, Key]) -> Iterator[str]:
    yield from ("| key | takes | default | means |", "|---|---|---|---|")
    yield from map(_row, keys.values())
    yield ""


def _purpose(name: str) -> str:
    annotation = Recipe.model_fields[name].annotation
    options = getattr(annotation, "__args__", (annotation,))
    return _first_line(options[0].__doc__)


def _first_line(text: str | None) -> str:
    return (text or "").strip().splitlines()[0]
