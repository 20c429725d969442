"""The recipe that `distill --init` writes and whose job the demo does: it runs as it is."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from opdf_compile.errors import ArtefactError
from opdf_compile.files import atomic_write


def digits_recipe() -> str:
    """The recipe, with a comment on each part."""
    return (files("opdf_compile.distill.recipe") / "digits.toml").read_text(encoding="utf-8")


def write_template(path: Path) -> None:
    """Write the template; an existing file stays.

    Raises:
        ArtefactError: There is such a file, or it cannot be written.
    """
    if path.exists():
        raise ArtefactError(
            f"{path} exists already and may be somebody's recipe; remove it, or name another file"
        )
    with atomic_write(path) as temporary:
        temporary.write_text(digits_recipe(), encoding="utf-8")
