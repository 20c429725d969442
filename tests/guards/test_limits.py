"""The limits that docs/security.md states are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from opdf_compile.artefacts import onnx_calls as calls
from opdf_compile.files import arrays
from opdf_compile.io.models import example_inputs as inputs
from opdf_compile.io.models import shards
from opdf_compile.io.screening import (
    archive,
    container,
    extents,
    growth,
    header,
    hf,
    pickles,
    syntax,
    trees,
)
from opdf_compile.parametrizations import matrix_spec
from opdf_compile.planning import files
from opdf_compile.tensor import modes

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
LIMITS: dict[str, tuple[int, ...]] = {
    "members of an archive": (container.MOST_MEMBERS,),
    "JSON or text in an archive, one member": (archive.LARGEST_TEXT,),
    "pickle in an archive, without its tensors": (pickles.LARGEST_PICKLE,),
    "values in sample inputs": (trees.MOST_VALUES,),
    "bytes that repeating tensors of one file may need": (extents.LARGEST_REPEATED,),
    "characters of a symbolic expression": (syntax.LONGEST,),
    "digits of a number in it; where it is irrational": (
        growth.MOST_DIGITS,
        growth.MOST_DIGITS_IRRATIONAL,
    ),
    "parts that it compares": (growth.MOST_COMPARED,),
    "header of a safetensors file": (header.LARGEST_HEADER,),
    "index of shards": (shards.LARGEST_INDEX,),
    "config.json": (hf.LARGEST_CONFIG,),
    "a number in config.json; layers": (hf.LARGEST_CONFIG_NUMBER, hf.MOST_LAYERS),
    "plan file": (files.MAX_BYTES,),
    "cores of one weight": (modes.MAX_CORES,),
    "entries of a weight": (matrix_spec.MAX_ENTRIES,),
    "elements of an example input that is drawn": (inputs.MOST_DRAWN,),
    "what an `.npz` unpacks to": (arrays.LARGEST_BYTES,),
    "the same, as a multiple of the file": (arrays.MOST_INFLATION,),
    "nodes that the functions of an ONNX file unfold to": (calls.MOST_NODES,),
}
# protobuf's own, not ours.
ELSEWHERE = {"an ONNX file"}
UNITS = {"MiB": 1 << 20, "GiB": 1 << 30, "": 1}


def documented() -> dict[str, str]:
    text = PAGE.read_text(encoding="utf-8")
    table = text.partition("## Limits")[2].partition("## Not covered")[0]
    rows = re.findall(r"^\| (.+?) \| (.+?) \|$", table, flags=re.MULTILINE)
    return dict(rows[1:])


def number(text: str) -> int:
    base, _, power = text.partition("^")
    if power:
        return int(base) ** int(power)
    value, _, unit = text.replace(",", "").partition(" ")
    return int(value) * UNITS[unit]


def test_every_limit_is_documented_and_no_other() -> None:
    assert documented().keys() == LIMITS.keys() | ELSEWHERE


@pytest.mark.parametrize("what", LIMITS)
def test_a_documented_limit_is_the_codes(what: str) -> None:
    assert tuple(number(part) for part in documented()[what].split("; ")) == LIMITS[what]
