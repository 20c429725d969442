"""Every source of data, split, batched and fingerprinted."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from opdf_compile.distill.recipe.digits import load_digits
from opdf_compile.distill.recipe.examples import (
    DATA_PARTS,
    Chained,
    Chosen,
    Padded,
    Table,
    examples_at,
    fingerprint,
    split_off,
)
from opdf_compile.distill.recipe.job import Examples
from opdf_compile.distill.recipe.sources import load_source
from opdf_compile.errors import UserError

X, Y = torch.randn(60, 3), torch.arange(60) % 3


def columns(part: Examples) -> dict[str, Tensor]:
    """All rows of a part, whatever holds it."""
    return Padded(None)([part[row] for row in range(len(part))])


def save(folder: Path, **arrays: Tensor) -> None:
    np.savez(folder / "data.npz", **{name: array.numpy() for name, array in arrays.items()})


def test_digits_keep_the_parts_of_the_demo(tmp_path: Path) -> None:
    parts, digits = load_source("digits", tmp_path), load_digits()
    for name in DATA_PARTS:
        assert set(columns(parts[name])) == {"images", "labels"}
    assert fingerprint(parts) == fingerprint(digits)


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_a_file_of_columns(suffix: str, tmp_path: Path) -> None:
    if suffix == "npz":
        save(tmp_path, x=X, labels=Y)
    else:
        save_file({"x": X, "labels": Y}, tmp_path / "data.safetensors")
    parts = load_source(f"data.{suffix}", tmp_path)
    assert list(parts) == ["train"]
    assert torch.equal(columns(parts["train"])["x"], X)


def test_a_file_of_three_parts(tmp_path: Path) -> None:
    save(tmp_path, train_x=X[:40], validation_x=X[40:50], test_x=X[50:])
    parts = load_source("data.npz", tmp_path)
    assert [len(parts[name]) for name in DATA_PARTS] == [40, 10, 10]
    assert torch.equal(columns(parts["test"])["x"], X[50:])


CODE = """
import torch
X = torch.arange(12.0).reshape(6, 2)
class Rows(torch.utils.data.Dataset):
    def __len__(self): return 6
    def __getitem__(self, row): return {"x": X[row]}
def columns(count=6): return {"x": X[:count].numpy()}
def parts(): return {"train": Rows(), "dev": {"x": X[:2]}}
def three(): return Rows(), Rows(), {"x": X[:3]}
def pairs(): return [(X[0], 1)]
def number(): return 3
def texts(): return {"x": X, "t": ["a"] * 6}
def unequal(): return {"x": X, "y": X[:4]}
"""


@pytest.mark.parametrize(
    ("source", "sizes"),
    [
        ("code.py:columns?count=4", {"train": 4}),
        ("code.py:Rows", {"train": 6}),
        ("code.py:parts", {"train": 6, "validation": 2}),
        ("code.py:three", {"train": 6, "validation": 6, "test": 3}),
    ],
)
def test_a_callable(source: str, sizes: dict[str, int], tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text(CODE, encoding="utf-8")
    parts = load_source(source, tmp_path)
    assert {name: len(part) for name, part in parts.items()} == sizes
    assert torch.equal(parts["train"][1]["x"], torch.tensor([2.0, 3.0]))


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("code.py:pairs", "an example of code.py:pairs is a tuple"),
        ("code.py:number", "returned a int"),
        ("code.py:texts", "gives 't' as a list"),
        ("code.py:unequal", "unequal lengths (x 6, y 4)"),
        ("code.py:gone", "'gone'"),
        ("mnist1d?sed=3", "mnist1d"),
        ("hf:nowhere", "hf:nowhere"),
        ("data.csv", "wanted digits, mnist1d"),
        ("empty.npz", "empty"),
        ("text.npz", "cannot be read as examples"),
    ],
)
def test_what_is_no_source_is_one_sentence(source: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text(CODE, encoding="utf-8")
    (tmp_path / "empty.npz").touch()
    (tmp_path / "text.npz").write_text("hello", encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_source(source, tmp_path)
    assert says in str(caught.value).replace(f"{tmp_path}/", "")
    assert "\n" not in str(caught.value)


def test_mnist1d_comes_from_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a stand-in with the package's two functions: it is no dependency of the tests."""
    asked: list[Any] = []

    def make_dataset(settings: Any) -> dict[str, Any]:
        asked.append((settings.seed, settings.num_samples))
        numbers = np.arange(settings.num_samples * 40.0).reshape(-1, 40)
        end = settings.num_samples * 4 // 5
        labels = np.arange(len(numbers)) % 10
        return {
            **{"x": numbers[:end], "y": labels[:end]},
            **{"x_test": numbers[end:], "y_test": labels[end:]},
        }

    data = ModuleType("mnist1d.data")
    data.get_dataset_args = lambda: SimpleNamespace(seed=42, num_samples=5000)  # type: ignore[attr-defined]
    data.make_dataset = make_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mnist1d", ModuleType("mnist1d"))
    monkeypatch.setitem(sys.modules, "mnist1d.data", data)
    parts = load_source("mnist1d?seed=7&samples=50", tmp_path)
    assert asked == [(7, 50)]
    assert {name: len(part) for name, part in parts.items()} == {"train": 40, "test": 10}
    row = parts["test"][0]
    assert (row["signals"].shape, row["signals"].dtype, row["labels"].dtype) == (
        (40,),
        torch.float32,
        torch.int64,
    )


def test_a_missing_package_names_its_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("mnist1d", "mnist1d.data", "datasets"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match="pip install mnist1d"):
        load_source("mnist1d", tmp_path)
    with pytest.raises(UserError, match="pip install datasets"):
        load_source("hf:saved", tmp_path)


def test_a_saved_dataset(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")
    rows = datasets.Dataset.from_dict({"x": [[1, 2], [3]], "text": ["a", "b"]})
    datasets.DatasetDict({"train": rows, "valid": rows}).save_to_disk(tmp_path / "saved")
    parts = load_source("hf:saved", tmp_path)
    assert list(parts) == ["train", "validation"]
    assert list(parts["train"][0]) == ["x"]
    assert torch.equal(columns(parts["train"])["x"], torch.tensor([[1, 2], [3, 0]]))


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_split_takes_every_example_once(in_memory: bool) -> None:
    whole: Examples = Table({"x": X, "labels": Y})
    if not in_memory:
        whole = Chosen(whole, torch.arange(60))
    shares = {"validation": 0.2, "test": 0.1}
    parts = split_off(whole, shares, "labels", seed=3)
    assert [len(parts[name]) for name in DATA_PARTS] == [42, 12, 6]
    rows = torch.cat([columns(parts[name])["x"] for name in DATA_PARTS])
    assert torch.equal(rows.sort(0).values, X.sort(0).values)
    again = split_off(whole, shares, "labels", seed=3)
    other = split_off(whole, shares, "labels", seed=4)
    assert fingerprint(again) == fingerprint(parts) != fingerprint(other)
    if in_memory:
        for name in DATA_PARTS:
            counts = columns(parts[name])["labels"].bincount()
            assert len(set(counts.tolist())) == 1


def test_the_fingerprint_knows_contents_and_not_containers() -> None:
    def of(x: Tensor, labels: Tensor) -> str:
        return fingerprint({name: Table({"x": x, "labels": labels}) for name in DATA_PARTS})

    same = of(X, Y)
    assert of(X.clone(), Y) == same
    table = Table({"labels": Y, "x": X})
    assert fingerprint({name: Chosen(table, torch.arange(60)) for name in DATA_PARTS}) == same
    changed = X.clone()
    changed[59, 2] += 1e-6
    swapped = X.flip(0)
    for other in (of(changed, Y), of(swapped, Y), of(X, Y.int()), of(X.reshape(60, 3, 1), Y)):
        assert other != same


def test_batches_are_padded() -> None:
    rows = [
        {"ids": torch.tensor([1, 2, 3]), "tags": torch.tensor([1, 1, 1]), "y": torch.tensor(1)},
        {"ids": torch.tensor([4]), "tags": torch.tensor([2]), "y": torch.tensor(0)},
    ]
    batch = Padded("tags")(rows)
    assert batch["ids"].tolist() == [[1, 2, 3], [4, 0, 0]]
    assert batch["tags"].tolist() == [[1, 1, 1], [2, -100, -100]]
    assert batch["y"].tolist() == [1, 0]


@pytest.mark.parametrize("which", ["of both", "of the first", "of the second"])
def test_rows_that_are_cut_out_at_once_are_those_read_one_by_one(which: str) -> None:
    first, second = (Table({"x": torch.randn(n, 3), "y": torch.arange(n)}) for n in (30, 20))
    chosen, collate = Chosen(Chained(first, second), torch.randperm(50)[:40]), Padded("y")
    near = chosen.indices < 30
    wanted = {"of both": near | ~near, "of the first": near, "of the second": ~near}[which]
    places = wanted.nonzero()[:, 0]
    found = examples_at(chosen, places)
    assert isinstance(found, Table) and len(found) == len(places) > 0
    one_by_one = collate([chosen[int(place)] for place in places])
    for name, column in collate(found).items():
        assert torch.equal(column, one_by_one[name])
    assert isinstance(examples_at(Chained(first, [second[0]]), places % 31), list)
