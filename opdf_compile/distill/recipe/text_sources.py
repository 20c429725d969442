"""Where prompts and responses come from: rows of fields, each a text or a list of token ids."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from opdf_compile.distill.recipe.examples import DATA_PARTS
from opdf_compile.distill.recipe.paths import located, located_model
from opdf_compile.distill.recipe.sources import open_saved, part_name
from opdf_compile.errors import ArtefactError, InputError
from opdf_compile.files import existing_file, read_failure
from opdf_compile.io import call_callable, names_code

Row = Mapping[str, Any]
LINES = ".jsonl"


def load_rows(source: str, base: Path) -> dict[str, Sequence[Row]]:
    """Load what a source gives.

    Returns:
        Rows by part; "train" alone is the whole, still to be split.

    Raises:
        UserError: There is no such source, or its contents are no rows.
    """
    if source.endswith(LINES):
        return {"train": read_lines(located(source, base))}
    if source.startswith("hf:"):
        return open_saved(located(source.removeprefix("hf:"), base), source)
    if names_code(source):
        return _parts(call_callable(located_model(source, base)), source)
    raise InputError(
        f'source "{source}" has no form that gives prompts and responses, wanted FILE.jsonl, '
        "package.module:callable, FILE.py:callable or hf:DIR; write one JSON object a line, or "
        "remove [language]"
    )


def read_lines(file: Path) -> list[Row]:
    """The objects of a file with one JSON object a line; empty lines count for nothing.

    Raises:
        ArtefactError: The file is missing, or a line holds something else.
    """
    existing_file(file, wanted="a .jsonl file")
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        raise ArtefactError(read_failure(file, error)) from error
    return [_row(file, place, line) for place, line in enumerate(lines, 1) if line.strip()]


def _row(file: Path, place: int, line: str) -> Row:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ArtefactError(
            f"{file}, line {place} is no JSON ({str(error)[:80].rstrip('.')}), wanted one object a "
            "line; write the file again with json.dumps"
        ) from error
    if not isinstance(value, dict):
        raise ArtefactError(
            f"{file}, line {place} holds {json.dumps(value)[:40]}, wanted an object such as "
            '{"prompt": "...", "response": "..."}; correct the line'
        )
    return value


def _parts(made: Any, source: str) -> dict[str, Sequence[Row]]:
    """What a callable may return: rows, columns, or three parts of either."""
    if isinstance(made, tuple) and 1 <= len(made) <= len(DATA_PARTS):
        made = dict(zip(DATA_PARTS, made, strict=False))
    if isinstance(made, Mapping) and made and all(part_name(name) in DATA_PARTS for name in made):
        return {part_name(name): _rows(part, source) for name, part in made.items()}
    return {"train": _rows(made, source)}


def _rows(made: Any, source: str) -> Sequence[Row]:
    if isinstance(made, Mapping):
        lengths = {len(column) for column in made.values()}
        if len(lengths) == 1:
            return [dict(zip(made, row, strict=True)) for row in zip(*made.values(), strict=True)]
    elif hasattr(made, "__len__") and hasattr(made, "__getitem__"):
        rows = [made[place] for place in range(len(made))]
        if all(isinstance(row, Mapping) for row in rows):
            return rows
    raise InputError(
        f"{source} returned a {type(made).__name__} that holds no rows, wanted a list of mappings "
        "with prompt and response, a mapping of lists of equal length, or (train, validation, "
        "test) of these; change what it returns"
    )
