"""safetensors: round trips, refused headers, and weights that do or do not belong to a model."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from opdf_compile.errors import ArtefactError
from opdf_compile.io.models.safetensors_file import read_tensors, write_student, write_tensors
from opdf_compile.io.models.weight_loading import load_weights
from opdf_compile.io.screening import header


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.layer = nn.Linear(4, 4)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.head(self.layer(self.embed(ids)))
        return out


def test_round_trip_keeps_dtypes_and_texts(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(2, 3).t(),
        "b": torch.randn(4).bfloat16(),
        "c": torch.tensor(3),
        "empty": torch.empty(0, 3),
    }
    write_tensors(tmp_path / "a.safetensors", tensors, {"opdf.plan": '{"\u00e9": 1}'})
    read, texts = read_tensors(tmp_path / "a.safetensors")
    assert texts == {"opdf.plan": '{"\u00e9": 1}'}
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[n], t) and read[n].dtype == t.dtype for n, t in tensors.items())


def test_shared_tensors_and_bad_targets_are_sentences(tmp_path: Path) -> None:
    weight = torch.randn(2, 2)
    with pytest.raises(ArtefactError, match="a and b share memory"):
        write_tensors(tmp_path / "a.safetensors", {"a": weight, "b": weight.t()})
    with pytest.raises(ArtefactError, match="is a folder"):
        write_tensors(tmp_path, {"a": weight})
    assert list(tmp_path.iterdir()) == []


def test_disk_full_leaves_nothing(tmp_path: Path) -> None:
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, old[1]))
    try:
        with pytest.raises(ArtefactError, match="cannot write .*big.safetensors: .*free space"):
            write_tensors(tmp_path / "big.safetensors", {"a": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert list(tmp_path.iterdir()) == []


def crafted(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}


REFUSED = {
    "long_header": (crafted({}, length=3), "its header claims"),
    "short": (b"\x01\x00", "cut short"),
    "overlap": (
        crafted({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, b"\0" * 12),
        "no readable safetensors file",
    ),
    "same_bytes": (
        crafted({"a": entry([2], 0, 8), "b": entry([2], 0, 8)}, b"\0" * 8),
        "no readable safetensors file",
    ),
    "beyond_the_end": (crafted({"a": entry([20], 0, 80)}, b"\0" * 8), "no readable"),
    "another_size": (crafted({"a": entry([3], 0, 8)}, b"\0" * 8), "no readable"),
    "negative": (crafted({"a": entry([2], -8, 0)}, b"\0" * 8), "no readable"),
    "no_json": ((4).to_bytes(8, "little") + b"abcd", "no readable"),
    "unknown_dtype": (
        crafted({"a": {"dtype": "X9", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4),
        "no readable",
    ),
    "pickle": (b"\x80\x02}q\x00.", "cut short or no safetensors file"),
    "empty": (b"", "is empty"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_files_are_sentences(name: str, tmp_path: Path) -> None:
    content, words = REFUSED[name]
    path = tmp_path / f"{name}.safetensors"
    path.write_bytes(content)
    with pytest.raises(ArtefactError, match=words) as caught:
        read_tensors(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_header_beyond_the_limit_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "long.safetensors"
    path.write_bytes(crafted({"a": entry([2], 0, 8)}, bytes(8)))
    read_tensors(path)
    monkeypatch.setattr(header, "LARGEST_HEADER", 8)
    with pytest.raises(ArtefactError, match="at most 8 are read"):
        read_tensors(path)


def saved(tmp_path: Path, change: Callable[[dict[str, Tensor]], Any]) -> Path:
    torch.manual_seed(1)
    state = {name: tensor.clone() for name, tensor in Tied().state_dict().items()}
    change(state)
    write_tensors(tmp_path / "w.safetensors", state)
    return tmp_path / "w.safetensors"


@pytest.mark.parametrize("dropped", [(), ("head.weight",), ("embed.weight",)])
def test_one_name_of_a_tied_weight_is_enough(tmp_path: Path, dropped: tuple[str, ...]) -> None:
    path = saved(tmp_path, lambda state: [state.pop(name) for name in dropped])
    model = Tied()
    assert load_weights(model, path) == ()
    torch.manual_seed(1)
    wanted = Tied().state_dict()
    assert all(torch.equal(model.state_dict()[name], wanted[name]) for name in wanted)
    assert model.head.weight is model.embed.weight


def test_a_program_takes_weights_too(tmp_path: Path) -> None:
    program = torch.export.export(Tied(), (torch.arange(3),))
    load_weights(program, saved(tmp_path, lambda state: state.pop("head.weight")))
    torch.manual_seed(1)
    assert torch.equal(program.module()(torch.arange(3)), Tied()(torch.arange(3)))


@pytest.mark.parametrize("prefix", ["module.", "model."])
def test_a_wrappers_prefix_is_taken_off(tmp_path: Path, prefix: str) -> None:
    def change(state: dict[str, Tensor]) -> None:
        for name in list(state):
            state[prefix + name] = state.pop(name)

    model = Tied()
    (note,) = load_weights(model, saved(tmp_path, change))
    assert note.startswith(f"took the prefix {prefix!r}")
    torch.manual_seed(1)
    assert torch.equal(model.layer.weight, Tied().layer.weight)


def test_dtypes_are_converted_and_said(tmp_path: Path) -> None:
    def change(state: dict[str, Tensor]) -> None:
        state["layer.weight"] = state["layer.weight"].half()

    assert "converted 1 tensors" in load_weights(Tied(), saved(tmp_path, change))[0]


FOREIGN: list[tuple[Callable[[dict[str, Tensor]], Any], str]] = [
    (lambda s: s.pop("layer.bias"), r"of its 4 tensors, 1 missing \(layer.bias\)"),
    (lambda s: s.update(zzz=torch.ones(1)), r"1 unexpected \(zzz\)"),
    (lambda s: s.update(aa=torch.ones(1), layer=s.pop("layer.bias")), "1 missing .* 2 unexpected"),
    (lambda s: s.update({"layer.bias": torch.ones(9)}), r"shape \(9,\), wanted \(4,\)"),
    (lambda s: s["head.weight"].add_(1), "one tied weight and differ"),
    (lambda s: s.clear(), r"3 missing|4 missing \(embed.weight, "),
]


@pytest.mark.parametrize(("change", "words"), FOREIGN)
def test_foreign_weights_are_refused_and_nothing_changes(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], Any], words: str
) -> None:
    path = saved(tmp_path, change)
    model = Tied()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ArtefactError, match=words):
        load_weights(model, path)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_pickled_weights_need_trust(tmp_path: Path) -> None:
    torch.manual_seed(1)
    torch.save({"state_dict": Tied().state_dict()}, tmp_path / "w.pth")
    model = Tied()
    with pytest.raises(ArtefactError, match="is a pickle, and loading it would run code"):
        load_weights(model, tmp_path / "w.pth")
    load_weights(model, tmp_path / "w.pth", trust_pickle=True)
    torch.manual_seed(1)
    assert torch.equal(model.layer.weight, Tied().layer.weight)
    torch.save([1], tmp_path / "list.pt")
    with pytest.raises(ArtefactError, match="holds a list, wanted a state dict"):
        load_weights(model, tmp_path / "list.pt", trust_pickle=True)
    (tmp_path / "junk.pt").write_bytes(b"junk")
    with pytest.raises(ArtefactError, match="cannot be unpickled"):
        load_weights(model, tmp_path / "junk.pt", trust_pickle=True)


def test_a_students_file_has_every_key_and_ties_come_back(tmp_path: Path) -> None:
    class Versioned(Tied):
        def get_extra_state(self) -> dict[str, int]:
            return {"version": 1}

        def set_extra_state(self, state: dict[str, int]) -> None:
            assert state == {"version": 1}

    student, file = Versioned(), tmp_path / "student.safetensors"
    with pytest.raises(ArtefactError, match="share memory"):
        write_tensors(file, {k: v for k, v in student.state_dict().items() if k != "_extra_state"})
    write_student(file, student.state_dict())
    found, texts = read_tensors(file)
    assert set(found) == {*Tied().state_dict()}
    assert texts == {"format": "pt"}
    other = Versioned()
    load_weights(other, file)
    assert torch.equal(other.head.weight, student.head.weight)
    assert other.head.weight is other.embed.weight
