"""The table of other tools in a page of the docs, between two comments."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exports.models import TRIED
from exports.neighbours import TOOLS

RESULTS = Path(__file__).parents[1] / "results" / "tools.json"
BEGIN, END = "<!-- written by benchmarks/tools.py -->", "<!-- end of the table -->"
_OLDER = "`export --opset 17`"
# What onnx's converter says of an operator that it cannot take back.
_NEWER = re.compile(r"No Previous Version of (\w+)")


def write_page(page: Path) -> None:
    """Put the table of the newest results into a page that has the two comments."""
    text = page.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not end:
        raise SystemExit(f"{page} has no place for the table, wanted {BEGIN} and {END}")
    value = json.loads(RESULTS.read_text(encoding="utf-8"))
    lines = "\n".join(tool_lines(value))
    page.write_text(f"{head}{BEGIN}\n{lines}\n{END}{tail}", encoding="utf-8")


def tool_lines(value: Mapping[str, Any]) -> list[str]:
    """Versions and table.

    Args:
        value: The JSON of tools.py.
    """
    names = [name for name in TRIED if any(row["model"] == name for row in value["rows"])]
    cells = {(row["tool"], row["model"]): row for row in value["rows"]}
    versions = ", ".join(f"{n} {v}" for n, v in value["tools"].items() if v is not None)
    lines = [
        f"{versions}; torch {value['environment']['versions']['torch']}.",
        "",
        _line("tool", *(name.replace("_", " ") for name in names)),
        _line(":--", *(":--" for _ in names)),
    ]
    titles = {key: tool.title for key, tool in TOOLS.items()} | {"opset 17": _OLDER}
    for key, title in titles.items():
        if any((key, name) in cells for name in names):
            lines.append(_line(title, *(_cell(cells.get((key, name))) for name in names)))
    return lines


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "-"
    newer = _NEWER.search(row["reason"] or "")
    if row["result"] != "taken":
        return f"{newer[1]} is newer" if newer else str(row["result"])
    difference = row["difference"]
    share = "taken" if difference is None else f"{difference:.0e}" if difference else "same bits"
    if row["tool"] != "dynamic":
        return share
    return f"{share}; {row['int8']} of {row['linears']} (torch: {row['torch_int8']})"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
