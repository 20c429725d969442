"""Finished runs, a line each, written as each one ends: a stop loses nothing, and it goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opdf_compile.errors import InputError

Found = dict[str, Any]


class Store:
    """What a file of JSON lines holds, by key.

    A line is ``{"key": {..}, "found": {..}}``. A last line that a stop cut off or damaged is
    dropped from the file: its run is done again.

    Args:
        path: The file; it need not exist.

    Raises:
        InputError: A line before the last one cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._found: dict[str, Found] = {}
        if path.exists():
            self._read()

    def __len__(self) -> int:
        return len(self._found)

    def __contains__(self, key: Mapping[str, Any]) -> bool:
        return spelled(key) in self._found

    def __getitem__(self, key: Mapping[str, Any]) -> Found:
        return self._found[spelled(key)]

    def items(self) -> list[tuple[dict[str, Any], Found]]:
        """Keys and what was found, in the order of the file."""
        return [(json.loads(key), found) for key, found in self._found.items()]

    def keep(self, key: Mapping[str, Any], found: Found) -> None:
        """Write down what was found; it is in the file when this returns."""
        line = json.dumps({"key": dict(key), "found": found}) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line)
        self._found[spelled(key)] = found

    def _read(self) -> None:
        lines = self.path.read_bytes().splitlines(keepends=True)
        good = 0
        for number, line in enumerate(lines, 1):
            try:
                if not line.endswith(b"\n"):
                    raise ValueError("it was cut off")
                read = json.loads(line)
                self._found[spelled(read["key"])] = dict(read["found"])
            except (ValueError, KeyError, TypeError) as error:
                if number == len(lines):
                    break
                raise InputError(
                    f"line {number} of {self.path} is no finished run ({error}), wanted what this "
                    "command wrote; take the line out and its run is done again"
                ) from error
            good += len(line)
        with self.path.open("r+b") as file:
            file.truncate(good)


def spelled(key: Mapping[str, Any]) -> str:
    """A key as text, whatever the order of its entries."""
    return json.dumps(dict(key), sort_keys=True)
