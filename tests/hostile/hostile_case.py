"""One hostile file: how it is made, which command is given it, and the reason that it must name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Build = Callable[[Path, Path], object]


@dataclass(frozen=True)
class Case:
    """A row of the table.

    Attributes:
        name: Says what is wrong with the file.
        build: From the folder of good files and the case's own folder; writes the hostile file.
        command: A command line; it runs in the case's own folder, which has an empty folder `out`.
        words: A part of the sentence that must come, the actual reason.
    """

    name: str
    build: Build
    command: str
    words: str


def copied(*names: str) -> Build:
    """Good files as they are."""

    def build(good: Path, here: Path) -> None:
        for name in names:
            (here / name).write_bytes((good / name).read_bytes())

    return build
