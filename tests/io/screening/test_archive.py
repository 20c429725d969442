"""Invariant 9: a model file is data. What passes the screening, and damage; the rest is in
test_refused.py."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from archives import (
    MODEL,
    SAMPLES,
    Members,
    edit,
    good_members,
    saved,
    write_members,
)
from torch import nn

from opdf_compile.errors import ArtefactError
from opdf_compile.io.models.program_archive import read_programs
from opdf_compile.io.screening.container import record_size


@pytest.fixture
def good() -> Members:
    return good_members()


def test_the_untouched_file_passes(good: Members, tmp_path: Path) -> None:
    path = write_members(tmp_path / "good.pt2", good)
    loaded = read_programs(path)
    assert loaded.extra == {"plan.json": "{}"}
    assert loaded.model.module()(torch.ones(5, 4), "plain", torch.ones(1)).shape == (5, 4)


def test_guards_that_pass_are_dropped_all_the_same(good: Members, tmp_path: Path) -> None:
    edit(good, MODEL, lambda d: d.update(guards_code=["L['x'].size()[0] == 3"]))
    program = read_programs(write_members(tmp_path / "guard.pt2", good)).model
    assert program._guards_code == []
    program.module()(torch.ones(5, 4), "plain", torch.ones(1))


def test_trust_pickle_opens_what_is_refused_otherwise(good: Members, tmp_path: Path) -> None:
    good[SAMPLES] = saved(((Counter("harmless"), "plain", torch.ones(1)), {}))
    path = write_members(tmp_path / "trusted.pt2", good)
    with pytest.raises(ArtefactError, match="sample_inputs/model.pt, a pickle was found"):
        read_programs(path)
    inputs = read_programs(path, trust_pickle=True).model.example_inputs
    assert inputs is not None and inputs[0][0] == Counter("harmless")


def test_damaged_members_are_sentences(good: Members, tmp_path: Path) -> None:
    path = write_members(tmp_path / "flipped.pt2", good)
    whole = path.read_bytes()
    place = whole.index(b'"graph_module"') + 3
    path.write_bytes(whole[:place] + b"Z" + whole[place + 1 :])
    with pytest.raises(ArtefactError, match="flipped.pt2 cannot be opened by torch"):
        read_programs(path)
    odd = {**good, "data/sample_inputs/model.pt": b"PK\x03\x04junk"}
    with pytest.raises(ArtefactError, match="a damaged pickle was found"):
        read_programs(write_members(tmp_path / "odd.pt2", odd))


@pytest.mark.parametrize("cut", [10, 1000, 0.5, -1])
def test_truncated_archives_are_sentences(cut: float, good: Members, tmp_path: Path) -> None:
    whole = write_members(tmp_path / "whole.pt2", good).read_bytes()
    end = int(cut * len(whole)) if cut == 0.5 else int(cut)
    (tmp_path / "cut.pt2").write_bytes(whole[:end])
    with pytest.raises(ArtefactError, match="cut.pt2 is damaged or cut short"):
        read_programs(tmp_path / "cut.pt2")


def test_other_files_are_sentences(tmp_path: Path) -> None:
    (tmp_path / "random.pt2").write_bytes(bytes(range(256)) * 10)
    torch.save(nn.Linear(2, 2), tmp_path / "pickled.pt2")
    (tmp_path / "empty.pt2").touch()
    for name, words in [
        ("random.pt2", "is no .pt2 archive"),
        ("pickled.pt2", "unexpected member 'data.pkl'|no .pt2 archive"),
        ("empty.pt2", "is empty"),
        ("none.pt2", "does not exist"),
    ]:
        with pytest.raises(ArtefactError, match=words):
            read_programs(tmp_path / name)


def test_sizes_of_members_as_an_older_torch_tells_them(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(7), "b": torch.zeros(3, 5)}, tmp_path / "weights.pt")
    reader = torch._C.PyTorchFileReader(str(tmp_path / "weights.pt"))

    class Older:
        """The reader of torch 2.11, which has no `get_record_size`."""

        def get_record(self, name: str) -> bytes:
            return bytes(reader.get_record(name))

    names = reader.get_all_records()
    sizes = [record_size(Older(), name) for name in names]
    assert sizes == [record_size(reader, name) for name in names]
    assert sizes[names.index("data/0")] == 7 * 8
