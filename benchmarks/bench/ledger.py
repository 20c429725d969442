"""Figures of a long run: every finished row is on the disk at once, and a killed run goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.options import fail
from opdf_compile.files.atomic import atomic_write

# What a row depends on; rows of another device or version are no continuation.
_FIXED = ("device", "versions")


class Ledger:
    """A JSON file of rows that grows.

    Attributes:
        value: The whole JSON: schema, environment, rows, and what else the benchmark keeps.
    """

    def __init__(
        self, schema: str, path: str | None, environment: Mapping[str, Any], *, resume: bool
    ) -> None:
        """Open the file, or begin with no rows.

        A file that cannot be continued ends the process with one sentence.
        """
        self._path = None if path in (None, "-") else Path(str(path))
        self.value: dict[str, Any] = {"schema": schema, "environment": environment, "rows": []}
        if resume and self._path is not None and self._path.exists():
            self._continue(json.loads(self._path.read_text(encoding="utf-8")))
        self.write()

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows so far."""
        found: list[dict[str, Any]] = self.value["rows"]
        return found

    def add(self, row: Mapping[str, Any]) -> None:
        """Keep a row, on the disk too."""
        self.rows.append(dict(row))
        self.write()

    def write(self) -> None:
        """Replace the file in one step."""
        if self._path is None:
            return
        with atomic_write(self._path) as temporary:
            temporary.write_text(self.text(), encoding="utf-8")

    def text(self) -> str:
        """The JSON."""
        return json.dumps(self.value, indent=1, allow_nan=False, default=str) + "\n"

    def _continue(self, old: dict[str, Any]) -> None:
        if old.get("schema") != self.value["schema"]:
            fail(
                f"{self._path} is {old.get('schema')!r}, not {self.value['schema']!r}; name another"
            )
        now = self.value["environment"]
        for key in _FIXED:
            if old["environment"].get(key) != now.get(key):
                fail(
                    f"{self._path} was measured with {key} {old['environment'].get(key)}, this is "
                    f"{now.get(key)}; leave --resume out or name another file"
                )
        self.value = {**old, "environment": now}
