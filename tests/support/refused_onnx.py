"""Refused ONNX files, as candidates of `verify` and as students."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from guard_case import Case, from_table
from onnx import ModelProto, helper, numpy_helper
from refused_files import (
    ONNX as REFUSED,
)
from refused_files import Written, loaded, model, opset, row, whole

VERIFY = "verify {file} --reference {file} --only structure --device cpu"
REFERENCE = "verify reference.onnx --reference {file} --only structure --device cpu"
RUN = "verify {file} --reference {file} --only latency --budget 1 --device cpu"
# In memory alone: no file has such a function, and no command is given such a name.
_UNIT = ("a function in its own calls", "data in memory")
_EXTERNAL = {name: made for name, made in REFUSED.items() if name.startswith("data ")}
_WHOLE = {
    name: made
    for name, made in REFUSED.items()
    if name not in _EXTERNAL or name == "data cut short"
}


def metadata(value: str) -> ModelProto:
    made = whole()
    made.metadata_props.add(key="opdf.parameters", value=value)
    return made


def unknown() -> ModelProto:
    return model([helper.make_node("Unknown", ["x"], ["y"], domain="own")])


def reshaped() -> ModelProto:
    """A student whose example does not have the number of values that it asks for."""
    return model(
        [helper.make_node("Reshape", ["x", "s"], ["y"])],
        [numpy_helper.from_array(np.array([7, 11]), "s")],
    )


_VERIFIED: dict[str, Written] = {
    "half a record of parameters": row(loaded(metadata("[1")), "no JSON list of names"),
    "a record of numbers": row(loaded(metadata("[1]")), "no JSON list of names"),
    "operators of another year": row(loaded(opset(1 << 31)), "asks for version 2147483648"),
    "a name that commands the terminal": row(
        loaded(model([helper.make_node("Add", ["x", "\x1b[0mname\n"], ["y"])])),
        r"reads '\\x1b\[0mname\\n'",
    ),
}
_STUDENTS: dict[str, tuple[Written, str]] = {
    "half a file": (_WHOLE["half a file"], "inspect {file}"),
    "a shape without data": (_WHOLE["a shape without data"], "plan {file} -o out/plan.json"),
    "a circle": (_WHOLE["values that wait for each other"], "export {file} -o out/o.onnx"),
    "more nodes": (_WHOLE["more nodes than are read"], "inspect {file}"),
    "an unknown operator": (row(loaded(unknown()), "Unknown"), "inspect {file}"),
    "sizes that do not fit": (row(loaded(reshaped()), "Reshape|reshape|shape"), "inspect {file}"),
}


def cases(table: Mapping[str, Written], command: str, file: str = "m.onnx") -> list[Case]:
    known = {name: made for name, made in table.items() if name.split(", ")[-1] not in _UNIT}
    return from_table(known, command.format(file=file), "reference.onnx")


def labelled(kind: str, table: Mapping[str, Written]) -> dict[str, Written]:
    return {f"{kind}, {name}": made for name, made in table.items()}


_OUTSIDE = {name: made for name, made in _EXTERNAL.items() if name not in _WHOLE}
ONNX = (
    *cases(labelled("ONNX", {**_WHOLE, **_VERIFIED}), VERIFY),
    *cases(labelled("ONNX", _OUTSIDE), VERIFY, "models/m.onnx"),
    *cases(labelled("reference", {"half a file": _WHOLE["half a file"]}), REFERENCE),
    *cases(
        labelled("runtime", {"an unknown operator": row(loaded(unknown()), "not a regis")}), RUN
    ),
    *cases(
        labelled("student", {"data above": _EXTERNAL["data above"]}),
        "expand {file} -o out/o.pt2",
        "models/m.onnx",
    ),
    *(
        case
        for name, (made, command) in _STUDENTS.items()
        for case in cases({f"student, {name}": made}, command)
    ),
)
