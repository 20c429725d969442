"""The store: nothing is lost by a stop, and damage is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from quality.second.store import Store

from opdf_compile.errors import InputError

KEYS = [{"task": "t", "seed": seed} for seed in range(3)]


def filled(path: Path) -> Path:
    store = Store(path)
    for key in KEYS:
        store.keep(key, {"validation": [0.1 * key["seed"], 1.0]})
    return path


def test_what_was_kept_is_there_again_whatever_the_order_of_a_key(tmp_path: Path) -> None:
    again = Store(filled(tmp_path / "s.jsonl"))
    assert len(again) == 3
    assert {"seed": 2, "task": "t"} in again
    assert again[{"seed": 2, "task": "t"}] == {"validation": [0.2, 1.0]}
    assert {"seed": 3, "task": "t"} not in again
    assert [key for key, _found in again.items()] == KEYS


@pytest.mark.parametrize("damage", [b'{"key": {"task": "t", "se', b"\0\0\0\0\n", b'{"key": 3}\n'])
def test_a_damaged_last_line_is_dropped_and_its_run_can_be_kept_again(
    tmp_path: Path, damage: bytes
) -> None:
    path = filled(tmp_path / "s.jsonl")
    whole = path.read_bytes()
    path.write_bytes(whole + damage)
    store = Store(path)
    assert len(store) == 3
    assert path.read_bytes() == whole
    store.keep({"task": "t", "seed": 3}, {"validation": [1.0, 0.0]})
    assert len(Store(path)) == 4


def test_a_stop_in_the_middle_of_a_line_loses_that_run_alone(tmp_path: Path) -> None:
    path = filled(tmp_path / "s.jsonl")
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        assert len(Store(path)) == whole[:cut].count(b"\n")


def test_damage_before_the_last_line_is_an_error_with_its_number(tmp_path: Path) -> None:
    path = filled(tmp_path / "s.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1][:9] + b"\n" + lines[2])
    with pytest.raises(InputError, match=r"line 2 of .*s\.jsonl is no finished run"):
        Store(path)
