"""One refused file: how it is made, which command is given it, and the reason that it must name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refused_files import Written

Build = Callable[[Path, Path], object]


@dataclass(frozen=True)
class Case:
    """A row of the table.

    Attributes:
        name: Says what is wrong with the file.
        build: From the folder of good files and the case's own folder; writes the file.
        command: A command line; it runs in the case's own folder, which has an empty folder `out`.
        words: A part of the sentence that must come, the actual reason; a regular expression.
        limits: Limits of the package that are lowered meanwhile, by module and name, so that the
            file need not be large.
    """

    name: str
    build: Build
    command: str
    words: str
    limits: dict[str, int] = field(default_factory=dict)


def copied(*names: str) -> Build:
    """Good files as they are."""

    def build(good: Path, here: Path) -> None:
        for name in names:
            (here / name).write_bytes((good / name).read_bytes())

    return build


def named(limits: Mapping[tuple[Any, str], Any]) -> dict[str, int] | None:
    """Lowered limits for another process; None where something else than a number stands in."""
    if not all(type(value) is int for value in limits.values()):
        return None
    return {f"{owner.__name__}.{name}": value for (owner, name), value in limits.items()}


def from_table(
    table: Mapping[str, Written], command: str, *good_files: str, folder: str = "."
) -> list[Case]:
    """The files that a guard refuses when it is called itself, given to a command.

    Args:
        table: Rows of a table of screened files. Those in which a function stands in are left out.
        command: The command line.
        good_files: Good files that it needs beside.
        folder: Where the files are written, in the case's own folder.
    """
    cases = []
    for name, made in table.items():

        def build(good: Path, here: Path, made: Written = made) -> None:
            copied(*good_files)(good, here)
            (here / folder).mkdir(exist_ok=True)
            made(here / folder)

        row = peek(made)
        limits = named(row.limits)
        if limits is not None:
            cases.append(Case(name, build, command, row.words, limits))
    return cases


def peek(made: Written) -> Any:
    """A row of a table, of which only the words and limits are wanted here."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return made(Path(folder))
