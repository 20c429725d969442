"""Refused `.pt2` archives: those of the screening's own table, and forms that commands meet."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from archives import Members, good_members, read_members, saved, write_members
from guard_case import Build, Case, named
from refused_archives import ARCHIVES, STRANGER, Archive

MODEL = "models/model.json"


def archive(row: Archive) -> Build:
    """The screening's own small program, changed."""

    def build(good: Path, here: Path) -> None:
        members = good_members()
        row.craft(members)
        write_members(here / "bad.pt2", members)

    return build


def entries(change: Callable[[zipfile.ZipFile], object]) -> Build:
    """model.pt2 with something added by zipfile itself."""

    def build(good: Path, here: Path) -> None:
        write_members(here / "bad.pt2", read_members(good / "model.pt2"))
        with zipfile.ZipFile(here / "bad.pt2", "a") as opened:
            change(opened)

    return build


def linked(opened: zipfile.ZipFile) -> None:
    entry = zipfile.ZipInfo("archive/extra/link")
    entry.external_attr = 0o120777 << 16
    opened.writestr(entry, "plan.json")


def flipped(good: Path, here: Path) -> None:
    data = (good / "model.pt2").read_bytes()
    place = data.index(b'"graph_module"')
    (here / "bad.pt2").write_bytes(data[:place] + b'"graph_modulf"' + data[place + 14 :])


def older(change: Callable[[Members], object]) -> Build:
    """The same program in the form of torch 2.7, changed."""

    def build(good: Path, here: Path) -> None:
        from torch._export.serde.serialize import serialize

        artifact = serialize(torch.export.load(good / "model.pt2"))
        found = {
            "version": b"8.3",
            "serialized_exported_program.json": artifact.exported_program,
            "serialized_state_dict.pt": artifact.state_dict,
            "serialized_constants.pt": artifact.constants,
            "serialized_example_inputs.pt": artifact.example_inputs,
        }
        change(found)
        with zipfile.ZipFile(here / "bad.pt2", "w") as opened:
            for name, data in found.items():
                opened.writestr(name, data)

    return build


def aliases(value: Any) -> Build:
    """expanded.pt2 with other notes about tied names."""

    def build(good: Path, here: Path) -> None:
        found = read_members(good / "expanded.pt2")
        notes = {"schema": "opdf-program/1", "axes": {}, "aliases": value}
        found["extra/opdf.json"] = json.dumps(notes).encode()
        write_members(here / "bad.pt2", found)

    return build


def misfit(good: Path, here: Path) -> None:
    """expanded.pt2 whose first reshape asks for another number of entries."""
    found = read_members(good / "expanded.pt2")
    value = json.loads(found[MODEL])
    nodes = value["graph_module"]["graph"]["nodes"]
    shaping = next(n for n in nodes if "view" in n["target"] or "reshape" in n["target"])
    shaping["inputs"][1]["arg"] = {"as_ints": [7]}
    found[MODEL] = json.dumps(value).encode()
    write_members(here / "bad.pt2", found)


INSPECT = "inspect bad.pt2"
FOLD = "fold bad.pt2 -o out/o.pt2"
# An operator of the tests' own library is not registered in another process.
_HERE_ONLY = ("opens files",)
_TABLE: list[tuple[str, Build, str]] = [
    (
        "compressed member",
        entries(lambda z: z.writestr("archive/extra/a", b"0" * 999, zipfile.ZIP_DEFLATED)),
        "is compressed",
    ),
    (
        "two members of one name",
        entries(lambda z: z.writestr("archive/extra/PLAN.json", "")),
        "same name",
    ),
    ("link member", entries(linked), "is a symbolic link"),
    ("wrong checksum", flipped, "cannot be opened by torch"),
    (
        "operator of nobody",
        archive(
            Archive(
                lambda m: m.update(
                    {MODEL: m[MODEL].replace(b"torch.ops.aten.mul", b"torch.ops.nobody.mul")}
                ),
                "",
            )
        ),
        "not registered in this process",
    ),
    (
        "older archive with another global",
        older(lambda m: m.update({"serialized_state_dict.pt": saved({"a": STRANGER})})),
        "so it could run code",
    ),
    (
        "older archive with a stranger",
        older(lambda m: m.update({"../notes.txt": b""})),
        "points outside the archive",
    ),
]
PT2 = (
    *(
        Case(f"archive, {name}", archive(row), INSPECT, row.words, limits)
        for name, row in ARCHIVES.items()
        if (limits := named(row.limits)) is not None and row.words not in _HERE_ONLY
    ),
    *(Case(name, build, INSPECT, words) for name, build, words in _TABLE),
    Case("notes with a number", aliases({"0.weight": 7}), FOLD, "notes about tied weights"),
    Case("cores that do not fit", misfit, FOLD, "cannot be folded"),
    Case("notes over a weight", aliases({"0.weight": ["2.weight"]}), FOLD, "notes about tied"),
)
