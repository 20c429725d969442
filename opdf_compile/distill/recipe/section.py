"""What all sections of a recipe have in common, and the text that they were read from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from opdf_compile.distill.recipe.toml_lines import Path, nearest_line

BelowOne = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
AtLeastZero = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Text = Annotated[str, Field(min_length=1)]


@dataclass(frozen=True)
class RecipeText:
    """The text that a recipe was read from.

    Attributes:
        name: The file's name.
        text: Its contents.
        lines: The line of each key.
    """

    name: str
    text: str
    lines: dict[Path, int]

    def place(self, path: Path) -> str:
        """A key's place as "FILE:LINE"."""
        return f"{self.name}:{nearest_line(self.lines, path)}"


class Section(BaseModel):
    """What all sections have in common: no unknown keys, no guessing of types, no changes."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
