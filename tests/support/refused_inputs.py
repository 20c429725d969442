"""Refused plans, example inputs and check data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from guard_case import Build, Case, copied, from_table
from refused_files import ARRAYS, array, npz, row

EXPAND = "expand model.pt2 --plan bad.json -o out/o.pt2"
INSPECT = "inspect model.pt2 --inputs a.npz"
CHECK = "verify student.onnx --check a.npz --only numerics --device cpu"
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


def check(change: Callable[[dict[str, Any]], object]) -> Build:
    """The unharmed check data, changed."""

    def build(good: Path, here: Path) -> None:
        copied("student.onnx")(good, here)
        with np.load(good / "student.check.npz") as stored:
            arrays = {name: stored[name] for name in stored.files}
        change(arrays)
        np.savez(here / "bad.npz", **arrays)

    return build


_PLANS: list[tuple[str, Build, str, dict[str, int]]] = [
    ("modes of another product", spec(out_modes=[3, 6]), "out_modes", {}),
    ("modes below zero", spec(in_modes=[-1, -8]), "in_modes", {}),
    ("modes of texts", spec(in_modes=["8", "1"]), "in_modes", {}),
    (
        "more cores than are read",
        spec(out_modes=[1] * 64 + [16], in_modes=[1] * 64 + [8]),
        "2 to 64|64 cores|at most 64|64",
        {},
    ),
    (
        "more entries than are read",
        plan(lambda value: None),
        "shape|entries",
        {"opdf_compile.parametrizations.matrix_spec.MAX_ENTRIES": 100},
    ),
    ("shape of another weight", spec(shape=[16, 9]), "shape|in_modes", {}),
    ("dtype that is none", spec(dtype="a word"), "dtype", {}),
    (
        "parametrization of nobody",
        plan(lambda value: value["entries"][0].update(parametrization="nobody's")),
        "nobody's",
        {},
    ),
    (
        "more text than is read",
        plan(lambda value: None),
        "a plan has at most 10",
        {"opdf_compile.planning.files.MAX_BYTES": 10},
    ),
    ("half a plan", text(b'{"schema": '), "is not a plan", {}),
    (
        "plan of NaN",
        plan(lambda value: value["entries"][0]["spec"].update(out_modes=[float("nan")])),
        "out_modes",
        {},
    ),
    (
        "plan with a key twice",
        text(b'{"schema": "opdf-plan/1", "entries": [], "entries": []}'),
        "it gives the key 'entries' twice",
        {},
    ),
    ("plan in other letters", text(b"\xff\xfe{}"), "is not a plan", {}),
    (
        "plan with a weight twice",
        plan(lambda value: value["entries"].append(value["entries"][0])),
        "twice",
        {},
    ),
    ("key that climbs", key("../../other"), "'../../other', the model has no such weight", {}),
    ("key that formats", key("{name}%s"), "'{name}%s', the model has no such", {}),
    (
        "key that commands the terminal",
        key("\x1b[0m\r\n[red]"),
        r"'\\x1b\[0m\\r\\n\[red\]', the model",
        {},
    ),
]
_OTHER_ARRAYS = {
    "a name that climbs": row(npz(("../other.npy", array("(2,)", bytes(8)))), "has no input")
}
_CHECKS: list[tuple[str, Build, str]] = [
    ("check data of nobody", check(lambda a: a.update(onnx_sha256=np.array(""))), "does not say"),
    ("check data of pickles", check(lambda a: a.update(dtype=np.array([{}]))), "that is a pickle"),
    (
        "check data with a sample too many",
        check(lambda a: a.update({"s9.in.x": np.ones(1)})),
        "lacks the entry",
    ),
    (
        "check data of texts",
        check(lambda a: a.update({k: np.array("text") for k in a if k.startswith("s0.out.")})),
        "is not all numbers of one kind",
    ),
]
# One entry is enough to see that check data goes the same way as example inputs.
_SAME_WAY = ("far more than the file", "objects")
INPUTS = (
    *(Case(name, build, EXPAND, words, limits) for name, build, words, limits in _PLANS),
    *from_table(
        {f"inputs, {name}": made for name, made in {**ARRAYS, **_OTHER_ARRAYS}.items()},
        INSPECT,
        "model.pt2",
    ),
    *from_table({f"check data, {name}": ARRAYS[name] for name in _SAME_WAY}, CHECK, "student.onnx"),
    *(Case(name, build, VERIFY, words) for name, build, words in _CHECKS),
)
