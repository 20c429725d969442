"""Hostile safetensors files, as weights and as cores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hostile_case import Build, Case


def raw(header: bytes, data: bytes = b"", length: int | None = None) -> Build:
    """bad.safetensors of these bytes, beside the unharmed program."""

    def build(good: Path, here: Path) -> None:
        (here / "model.pt2").write_bytes((good / "model.pt2").read_bytes())
        head = (len(header) if length is None else length).to_bytes(8, "little")
        (here / "bad.safetensors").write_bytes(head + header + data)

    return build


def header(entries: Any, data: int = 8) -> Build:
    return raw(json.dumps(entries).encode(), bytes(data))


def tensor(begin: int, end: int, shape: list[Any] | None = None, dtype: str = "F32") -> Any:
    return {"dtype": dtype, "shape": shape or [2], "data_offsets": [begin, end]}


def sparse(good: Path, here: Path) -> None:
    """A header of 100 MB that is a hole on the disk."""
    (here / "model.pt2").write_bytes((good / "model.pt2").read_bytes())
    with (here / "bad.safetensors").open("wb") as stream:
        stream.write((100 << 20).to_bytes(8, "little"))
        stream.truncate(200 << 20)


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


_TABLE: list[tuple[str, Build, str]] = [
    ("header of 2^60 bytes", raw(b"{}", length=1 << 60), "its header claims 1152921504606846976"),
    ("header longer than the file", raw(b"{}", length=100), "its header claims 100 bytes"),
    ("header of a million tensors", sparse, "at most 33554432 are read"),
    ("overlap", header({"a": tensor(0, 8), "b": tensor(4, 12)}, 12), "'b' overlaps another one"),
    ("gap", header({"a": tensor(0, 8), "b": tensor(12, 20)}, 20), "'b' leaves a gap before it"),
    ("negative begin", header({"a": tensor(-8, 0)}), "no two numbers from 0 up"),
    ("swapped offsets", header({"a": tensor(8, 0)}), "ends at byte 0, before it begins at 8"),
    ("unknown element type", header({"a": tensor(0, 8, dtype="EVIL")}), "unknown dtype 'EVIL'"),
    ("shape that overflows", header({"a": tensor(0, 8, [1 << 62, 1 << 62])}), "has 8 bytes, its"),
    ("shape of texts", header({"a": tensor(0, 8, ["2"])}), "a shape that is no list of sizes"),
    ("trailing bytes", header({"a": tensor(0, 8)}, 99), "the file holds 99 bytes of data"),
    (
        "name twice",
        raw(b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{}}'),
        "the name 'a' comes twice",
    ),
    ("nested without end", raw(b'{"a":' + b"[" * 500_000), "nested without end"),
    ("header of other letters", raw(b'{"\xff\xfe":1}'), "its header is not UTF-8"),
    ("metadata of numbers", header({"__metadata__": {"x": 1}}, 0), "its metadata 'x' is no text"),
    ("metadata that is a list", header({"__metadata__": [1]}, 0), "its metadata is a list"),
    ("header that is a list", raw(b"[]"), "its header is a list"),
    (
        "name that commands the terminal",
        header({"\x1b[2J\r\u202e[red]evil": tensor(0, 8)}),
        "1 unexpected (\\x1b[2J \\u202e[red]evil)",
    ),
]
_FOLD = "fold bad.safetensors -o out/o.safetensors"
SAFETENSORS = (
    *(
        Case(name, build, "inspect model.pt2 --weights bad.safetensors", words)
        for name, build, words in _TABLE
    ),
    Case("plan in a header without end", plan_of("[" * 200_000), _FOLD, "header is damaged"),
    Case("plan in a header that is none", plan_of("{}"), _FOLD, "the plan is wrong at"),
)
