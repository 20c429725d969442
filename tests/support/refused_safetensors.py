"""Refused safetensors files, as weights and as cores."""

from __future__ import annotations

import json
from pathlib import Path

from guard_case import Build, Case, from_table
from refused_files import HEADERS, row, safetensors, tensor


def plan_of(text: str) -> Build:
    """The unharmed cores with another plan in the header."""

    def build(good: Path, here: Path) -> None:
        data = (good / "cores.safetensors").read_bytes()
        length = int.from_bytes(data[:8], "little")
        head = json.loads(data[8 : 8 + length])
        head["__metadata__"]["opdf.plan"] = text
        new = json.dumps(head).encode()
        body = len(new).to_bytes(8, "little") + new + data[8 + length :]
        (here / "bad.safetensors").write_bytes(body)

    return build


_FOLD = "fold bad.safetensors -o out/o.safetensors"
# A control character that colours nothing, one that shows nothing, and something like markup.
_NAMES = {
    "name that commands the terminal": row(
        safetensors({"\x1b[0m\r\u200b[red]name": tensor(0, 8)}),
        r"1 unexpected \(\\x1b\[0m \\u200b\[red\]name\)",
    )
}
SAFETENSORS = (
    *(
        case
        for case in from_table(
            {f"header, {name}": made for name, made in {**HEADERS, **_NAMES}.items()},
            "inspect model.pt2 --weights a.safetensors",
            "model.pt2",
        )
        if case.name != "header, a folder"
    ),
    Case("half a plan in a header", plan_of("["), _FOLD, "header is damaged"),
    Case("plan in a header that is none", plan_of("{}"), _FOLD, "the plan is wrong at"),
)
