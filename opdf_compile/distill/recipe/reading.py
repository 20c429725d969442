"""From a TOML file to a checked `Recipe`."""

from __future__ import annotations

import os
import re
import tomllib

from pydantic import ValidationError

from opdf_compile.distill.recipe.checks import contradiction
from opdf_compile.distill.recipe.problems import Problem, of_pydantic
from opdf_compile.distill.recipe.schema import Recipe
from opdf_compile.distill.recipe.section import RecipeText
from opdf_compile.distill.recipe.toml_lines import key_lines
from opdf_compile.errors import ArtefactError, RecipeError
from opdf_compile.files import existing_file

# A recipe is written by hand; a larger file is something else.
_MOST_BYTES = 1 << 20
_POSITION = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)")


def read_recipe(path: str | os.PathLike[str]) -> Recipe:
    """Read and check a recipe.

    Args:
        path: A TOML file.

    Returns:
        The recipe; its relative paths mean the file's own folder.

    Raises:
        RecipeError: The first thing that is wrong, with its line.
        ArtefactError: There is no such file, or it is no text.

    Example:
        >>> recipe = read_recipe("digits.toml")  # doctest: +SKIP
        >>> job = prepare(recipe, base=".")  # doctest: +SKIP
    """
    file = existing_file(path, wanted="a recipe")
    if file.stat().st_size > _MOST_BYTES:
        raise ArtefactError(
            f"{file} has {file.stat().st_size:,} bytes, a recipe has at most {_MOST_BYTES:,}; give "
            "the recipe, and data by its file name in [data]"
        )
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = "is no UTF-8 text" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise ArtefactError(
            f"{file} cannot be read as a recipe ({reason}), wanted a TOML file; start from "
            "opdf-compile distill --init RECIPE.toml"
        ) from error
    return parse_recipe(text, name=str(path))


def parse_recipe(text: str, *, name: str = "recipe.toml") -> Recipe:
    """Check a recipe's text.

    Args:
        text: TOML.
        name: The file's name, for messages.

    Returns:
        The recipe, which knows its text and lines.

    Raises:
        RecipeError: The first thing that is wrong, with its line.
    """
    # TOML's lines end in \n or \r\n; the reader counts both as one.
    text = text.replace("\r\n", "\n")
    try:
        data = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise RecipeError(_syntax(str(error), text, name)) from error
    source = RecipeText(name, text, key_lines(text))
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        raise _error(source, of_pydantic(error.errors(include_url=False), data)) from error
    recipe.remember(source)
    problem = contradiction(recipe)
    if problem is not None:
        raise _error(source, problem)
    return recipe


def _error(source: RecipeText, problem: Problem) -> RecipeError:
    return RecipeError(f"{source.place(problem.path)}: {problem.sentence}")


def _syntax(message: str, text: str, name: str) -> str:
    """The message of tomllib as a sentence with the line in front."""
    found = _POSITION.search(message)
    last = text.rstrip("\n").count("\n") + 1
    line = int(found[1]) if found and found[1] else last
    reason = _POSITION.sub("", message)
    known = _known(reason, text, line)
    if known is not None:
        return f"{name}:{line}: {known}"
    written = text.split("\n")[line - 1].strip()[:60] if text.strip() else "nothing"
    return (
        f"{name}:{line}: this is no TOML ({reason[:1].lower()}{reason[1:]}), found {written!r}, "
        'wanted lines such as lr = 0.01 or name = "AdamW" under a [section]; correct the line'
    )


def _known(reason: str, text: str, line: int) -> str | None:
    """The usual slips, in words of their own."""
    written = text.split("\n")[line - 1].strip() if text.strip() else ""
    key = written.partition("=")[0].strip() or "a key"
    if reason.startswith(("Cannot overwrite", "Cannot declare", "Duplicate")):
        return f"{key[:60]} was given before, wanted it once; remove one of the two"
    if reason.startswith(("Illegal character '\\n'", "Unterminated string")):
        return (
            f"the text of {key[:60]} is not closed, found {written[:60]!r}, wanted quotes on both "
            "sides of it; close it"
        )
    return None
