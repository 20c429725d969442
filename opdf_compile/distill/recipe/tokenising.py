"""From `[language]` and its rows to sequences of token ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from opdf_compile.distill.generation import end_token
from opdf_compile.distill.recipe.language_schema import LanguageSection
from opdf_compile.distill.recipe.models import placed
from opdf_compile.distill.recipe.paths import located, located_model
from opdf_compile.distill.recipe.schema import Recipe
from opdf_compile.distill.recipe.text_sources import LINES, Row, load_rows, read_lines
from opdf_compile.distill.recipe.tokens import Sequences
from opdf_compile.errors import InputError, RecipeError
from opdf_compile.files import importing_from

_PARTS = ("validation", "test")


def load_sequences(
    recipe: Recipe, base: Path, student: nn.Module
) -> tuple[dict[str, Sequences], int | None]:
    """Load and tokenise what a language model learns from.

    Returns:
        Sequences by part, and the token that ends a response, or None where nothing says it.

    Raises:
        RecipeError: The data cannot be loaded, or holds no prompts and responses.
    """
    section, language = recipe.data, recipe.language
    assert language is not None
    with importing_from(base), placed(recipe, "data", "source"):
        rows = load_rows(section.source, base)
    for name in _PARTS:
        file = getattr(section, name)
        if file is None:
            continue
        with placed(recipe, "data", name):
            rows[name] = _lines(file, name, base, already=name in rows)
    reader = _Reader(recipe, language, base, student)
    with placed(recipe, "data", "source"):
        found = {name: reader.sequences(part, name) for name, part in rows.items()}
    return found, reader.end


def _lines(file: str, name: str, base: Path, *, already: bool) -> list[Row]:
    if already:
        raise InputError(
            f"the source has a {name} part already, found another in {file}, wanted one; remove "
            f"{name}"
        )
    if not file.endswith(LINES):
        raise InputError(
            f'{name} is "{file}", wanted a FILE{LINES} with prompts and responses as [language] '
            "says; write one JSON object a line"
        )
    return read_lines(located(file, base))


@dataclass(eq=False)
class _Reader:
    """Makes sequences of rows; the tokenizer is loaded when a text is met."""

    recipe: Recipe
    section: LanguageSection
    base: Path
    student: nn.Module

    def __post_init__(self) -> None:
        self._tokenizer: Any = None
        self.end = self.section.end
        if self.end is None:
            self.end = end_token(self.student)

    def sequences(self, rows: Sequence[Row], part: str) -> Sequences:
        """The rows of a part."""
        pairs = [self._pair(row, f"example {n} of the {part} part") for n, row in enumerate(rows)]
        prompts, responses = zip(*pairs, strict=True) if pairs else ((), ())
        return Sequences(prompts, responses, self.section.learn)

    def _pair(self, row: Row, which: str) -> tuple[Tensor, Tensor]:
        section = self.section
        for name in (section.prompt, section.response):
            if name not in row:
                raise InputError(
                    f"{which} has no field {name}, its fields are {', '.join(row) or 'none'}, "
                    "wanted a prompt and a response; name them with prompt and response in "
                    "[language]"
                )
        prompt, response = row[section.prompt], row[section.response]
        ids = self._prompt(prompt) if isinstance(prompt, str) else _ids(prompt, which)
        room = section.max_length - len(ids)
        if not len(ids) or room < 1:
            raise InputError(
                f"{which} has a prompt of {len(ids)} tokens and max_length is "
                f"{section.max_length}, wanted one token at least and room for one of the "
                "response; raise max_length in [language], or leave the example out"
            )
        answer = self._response(response) if isinstance(response, str) else _ids(response, which)
        if not len(answer):
            raise InputError(
                f"{which} has an empty response, wanted one token at least; leave the example out"
            )
        return ids, answer[:room]

    def _prompt(self, text: str) -> Tensor:
        """With the tokens that the tokenizer puts at the beginning, and none at the end."""
        ids = list(self._reading()(text)["input_ids"])
        return torch.tensor(ids[:-1] if ids and ids[-1] == self.end else ids, dtype=torch.int64)

    def _response(self, text: str) -> Tensor:
        ids = list(self._reading()(text, add_special_tokens=False)["input_ids"])
        return torch.tensor([*ids, self.end], dtype=torch.int64)

    def _reading(self) -> Any:
        if self._tokenizer is None:
            self._tokenizer = self._loaded()
        return self._tokenizer

    def _loaded(self) -> Any:
        from opdf_compile.io import load_tokenizer

        given = self.section.tokenizer
        spec = located_model(given or self.recipe.student.model, self.base)
        if not spec.startswith("hf:"):
            raise RecipeError(
                f"{self.recipe.place('language', 'tokenizer')}: the examples are texts and "
                f"{given or 'the student'} is no hf:DIR, wanted a tokenizer for them; write "
                'tokenizer = "hf:DIR" in [language], or give lists of token ids'
            )
        with placed(self.recipe, "language", "tokenizer"):
            tokenizer = load_tokenizer(spec)
        if self.section.end is None and tokenizer.eos_token_id is not None:
            self.end = int(tokenizer.eos_token_id)
        if self.end is None:
            raise RecipeError(
                f"{self.recipe.place('language')}: neither the tokenizer nor the student has an "
                "end token, wanted one that ends a response; write end = ID in [language]"
            )
        return tokenizer


def _ids(value: Any, which: str) -> Tensor:
    """Token ids as they are."""
    found = list(_numbers(value))
    if not found and not hasattr(value, "__len__") or None in found:
        raise InputError(
            f"{which} has {str(value)[:40]} of {type(value).__name__} where a text or token ids "
            "go, wanted a text or a list of whole numbers from 0 on; correct the example"
        )
    return torch.tensor(found, dtype=torch.int64)


def _numbers(value: Any) -> Iterator[int | None]:
    """The numbers; None for what is no token id."""
    items = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(items, list | tuple):
        return
    for item in items:
        yield item if isinstance(item, int) and not isinstance(item, bool) and item >= 0 else None
