"""Hostile plans, example inputs and check data."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hostile_case import Build, Case, copied

EXPAND = "expand model.pt2 --plan bad.json -o out/o.pt2"
INSPECT = "inspect model.pt2 --inputs bad.npz"
VERIFY = "verify student.onnx --check bad.npz --only numerics --device cpu"


def plan(change: Callable[[Any], object]) -> Build:
    """The unharmed plan, changed."""

    def build(good: Path, here: Path) -> None:
        copied("model.pt2")(good, here)
        value = json.loads((good / "plan.json").read_text())
        change(value)
        (here / "bad.json").write_text(json.dumps(value))

    return build


def text(data: bytes) -> Build:
    def build(good: Path, here: Path) -> None:
        copied("model.pt2")(good, here)
        (here / "bad.json").write_bytes(data)

    return build


def spec(**changes: Any) -> Build:
    return plan(lambda value: value["entries"][0]["spec"].update(changes))


def key(name: str) -> Build:
    return plan(lambda value: value["entries"][0].update(key=name))


def long(good: Path, here: Path) -> None:
    """A plan of 70 MB that is a hole on the disk."""
    copied("model.pt2")(good, here)
    with (here / "bad.json").open("wb") as stream:
        stream.truncate(70 << 20)


def inputs(**arrays: Any) -> Build:
    def build(good: Path, here: Path) -> None:
        copied("model.pt2")(good, here)
        np.savez(here / "bad.npz", **arrays)

    return build


def zipped(name: str, data: bytes, method: int = zipfile.ZIP_STORED) -> Build:
    def build(good: Path, here: Path) -> None:
        copied("model.pt2", "student.onnx")(good, here)
        with zipfile.ZipFile(here / "bad.npz", "w", method) as archive:
            archive.writestr(name, data)

    return build


def array(shape: str, data: bytes = b"", descr: str = "'<f4'") -> bytes:
    head = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + data


def check(change: Callable[[dict[str, Any]], object]) -> Build:
    """The unharmed check data, changed."""

    def build(good: Path, here: Path) -> None:
        copied("student.onnx")(good, here)
        with np.load(good / "student.check.npz") as stored:
            arrays = {name: stored[name] for name in stored.files}
        change(arrays)
        np.savez(here / "bad.npz", **arrays)

    return build


BOMB = array("(25165824,)", bytes(96 << 20))
_PLANS: list[tuple[str, Build, str]] = [
    ("modes that overflow", spec(out_modes=[1 << 60, 1 << 60]), "out_modes"),
    ("modes below zero", spec(in_modes=[-1, -8]), "in_modes"),
    ("modes of texts", spec(in_modes=["8", "1"]), "in_modes"),
    ("a thousand cores", spec(out_modes=[1] * 1000 + [16], in_modes=[1] * 1000 + [8]), "64"),
    ("shape that is absurd", spec(shape=[1 << 62, 1 << 62]), "shape"),
    ("dtype that is code", spec(dtype="__import__('os')"), "dtype"),
    (
        "parametrization of nobody",
        plan(lambda v: v["entries"][0].update(parametrization="evil")),
        "evil",
    ),
    ("plan of a million entries", long, "a plan has at most 67,108,864"),
    ("plan without end", text(b"[" * 500_000), "is not a plan"),
    (
        "plan of NaN",
        plan(lambda v: v["entries"][0]["spec"].update(out_modes=[float("nan")])),
        "out_modes",
    ),
    (
        "plan with a key twice",
        text(b'{"schema": "opdf-plan/1", "entries": [], "entries": []}'),
        "it gives the key 'entries' twice",
    ),
    ("plan in other letters", text(b"\xff\xfe{}"), "is not a plan"),
    ("plan with a weight twice", plan(lambda v: v["entries"].append(v["entries"][0])), "twice"),
    ("key that climbs", key("../../evil"), "'../../evil', the model has no such weight"),
    ("key that formats", key("{0.__class__}%s%n"), "'{0.__class__}%s%n', the model has no such"),
    ("key that commands the terminal", key("\x1b[2J\r\n[red]"), r"'\x1b[2J\r\n[red]', the model"),
]
_INPUTS: list[tuple[str, Build, str]] = [
    ("inputs that are pickles", inputs(x=np.array([{}], dtype=object)), "that is a pickle"),
    (
        "inputs that are a bomb",
        zipped("x.npy", BOMB, zipfile.ZIP_DEFLATED),
        "(a zip bomb)",
    ),
    (
        "inputs that claim a terabyte",
        zipped("x.npy", array("(274877906944,)", bytes(8))),
        "claims 1099511627776 bytes and holds 8",
    ),
    (
        "inputs of one huge element",
        zipped("x.npy", array("(1,)", bytes(8), "'|V2000000000'")),
        "claims 2000000000 bytes and holds 8",
    ),
    ("inputs that climb", zipped("../../evil.npy", array("(2,)", bytes(8))), "has no input"),
    ("inputs that are no array", zipped("x.py", b"open('evil', 'w')"), "is no array"),
]
_CHECKS: list[tuple[str, Build, str]] = [
    ("check data of nobody", check(lambda a: a.update(onnx_sha256=np.array(""))), "does not say"),
    ("check data of pickles", check(lambda a: a.update(dtype=np.array([{}]))), "that is a pickle"),
    (
        "check data that is a bomb",
        zipped("schema.npy", BOMB, zipfile.ZIP_DEFLATED),
        "(a zip bomb)",
    ),
    (
        "check data with a sample too many",
        check(lambda a: a.update({"s999999999.in.x": np.ones(1)})),
        "lacks the entry",
    ),
    (
        "check data of texts",
        check(lambda a: a.update({k: np.array("evil") for k in a if k.startswith("s0.out.")})),
        "is not all numbers of one kind",
    ),
]
TEXTS = (
    *(Case(name, build, EXPAND, words) for name, build, words in _PLANS),
    *(Case(name, build, INSPECT, words) for name, build, words in _INPUTS),
    *(Case(name, build, VERIFY, words) for name, build, words in _CHECKS),
)
