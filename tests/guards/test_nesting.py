"""JSON that is nested deeper than Python can hold ends in a sentence, wherever JSON is read.

No file here is: Python's reader is replaced by one that gives up as it would.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from opdf_compile.artefacts.record import RECORD, recorded_parameters
from opdf_compile.errors import UserError
from opdf_compile.io.checkpoints.manifest import read_checkpoint_manifest
from opdf_compile.io.models.shards import read_json_object
from opdf_compile.io.saved.expanded_file import fold_file
from opdf_compile.planning import Plan


def index(good: Path, here: Path) -> None:
    read_json_object(good / "shards" / "model.safetensors.index.json", "an index")


def plan(good: Path, here: Path) -> None:
    Plan.load(good / "plan.json")


def cores(good: Path, here: Path) -> None:
    fold_file(good / "cores.safetensors")


def manifest(good: Path, here: Path) -> None:
    (here / "manifest.json").write_text("{}")
    read_checkpoint_manifest(here)


def record(good: Path, here: Path) -> None:
    import onnx

    model = onnx.load(good / "student.onnx")
    model.metadata_props.add(key=RECORD, value="[]")
    recorded_parameters(model, "student.onnx")


READERS: dict[Callable[[Path, Path], None], str] = {
    index: "is no JSON",
    plan: "is not a plan",
    cores: "header is damaged|nested without end",
    manifest: "is no JSON",
    record: "is no JSON list of names",
}


@pytest.mark.parametrize("read", READERS, ids=lambda reader: reader.__name__)
def test_nested_deeper_than_python_holds(
    read: Callable[[Path, Path], None], good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def give_up(*_: Any, **__: Any) -> Any:
        raise RecursionError("maximum recursion depth exceeded")

    monkeypatch.setattr(json, "loads", give_up)
    with pytest.raises(UserError, match=READERS[read]) as caught:
        read(good, tmp_path)
    assert "\n" not in str(caught.value)
