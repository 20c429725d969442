"""Example inputs: the forms of --input, --size and --inputs, and a sentence for each wrong one."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from opdf_compile.errors import ArtefactError, InputError
from opdf_compile.io.models.example_inputs import (
    ExampleInputs,
    Hints,
    InputOptions,
    make_examples,
    rename_axes,
)


def examples(*specs: str, size: str | None = None, file: Path | None = None) -> ExampleInputs:
    return make_examples(InputOptions(specs, file, size), ("x", "y"))


@pytest.mark.parametrize(
    ("spec", "shape", "dtype"),
    [
        ("x=2x3x8x8:float32", (2, 3, 8, 8), torch.float32),
        ("x=5", (5,), torch.float32),
        ("x=2x3:fp16", (2, 3), torch.float16),
        ("x=2x3:bf16", (2, 3), torch.bfloat16),
        ("x=2x3:long", (2, 3), torch.int64),
        ("x=4:bool", (4,), torch.bool),
        ("x=scalar:int32", (), torch.int32),
        (" x=1x1:float64 ", (1, 1), torch.float64),
    ],
)
def test_named_inputs(spec: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    made = examples(spec)
    assert made.args == () and made.dynamic is None
    assert made.kwargs["x"].shape == shape and made.kwargs["x"].dtype == dtype


def test_unnamed_inputs_are_positional_and_known_by_the_models_names() -> None:
    made = examples("Bx3:float32", "4xB:int64", "z=1:float32", size="B=2")
    assert [tuple(a.shape) for a in made.args] == [(2, 3), (4, 2)]
    assert list(made.kwargs) == ["z"]
    assert made.dynamic == {"x": ("B", 3), "y": (4, "B"), "z": (1,)}


def test_letters_share_a_size_and_become_axes() -> None:
    made = examples("ids=BxS:int64", "mask=BxS:int64", size="B=2, S=24")
    assert made.kwargs["ids"].shape == made.kwargs["mask"].shape == (2, 24)
    assert made.dynamic == {"ids": ("B", "S"), "mask": ("B", "S")}


def test_draws_are_the_same_on_every_run_and_valid() -> None:
    torch.manual_seed(7)
    first = examples("x=4x5:float32", "i=50:int64", "b=50:bool", "attention_mask=9:int64")
    state = torch.get_rng_state()
    torch.manual_seed(8)
    again = examples("x=4x5:float32", "i=50:int64", "b=50:bool", "attention_mask=9:int64")
    assert all(torch.equal(first.kwargs[n], again.kwargs[n]) for n in first.kwargs)
    assert set(first.kwargs["i"].tolist()) == {0, 1}
    assert set(first.kwargs["b"].tolist()) == {True, False}
    assert set(first.kwargs["attention_mask"].tolist()) == {1}
    torch.manual_seed(7)
    assert torch.equal(state, torch.get_rng_state())
    hinted = make_examples(InputOptions(("i=500:int64",)), (), Hints(limits={"i": 40}))
    assert 30 < int(hinted.kwargs["i"].max()) < 40


MALFORMED = [
    (("x=2y3:float32",), None, "has the shape '2y3'"),
    (("x=:float32",), None, "has the shape ''"),
    (("=2x3:float32",), None, "cannot be read"),
    (("x=2x3:float33",), None, "has the dtype 'float33', wanted one of float16"),
    (("x=2x3:float32:int",), None, "cannot be read"),
    (("x=2x0:float32",), None, "axis of size 0"),
    (("x=-2x3:float32",), None, "has the shape '-2x3'"),
    (("x=2xx3:float32",), None, "has the shape"),
    (("1x=2:float32",), None, "cannot be read"),
    (("x=99999999x9999999:float32",), None, "has 999999890000001 elements"),
    (("x=2:float32", "x=3:float32"), None, "'x' is given twice"),
    (("1:float32", "1:float32", "1:float32"), None, "positional input number 3, the model takes 2"),
    (
        ("x=BxS:int64",),
        "B=2",
        "the letter S of --input has no size .--size gives B.; give it, for example --size S=2",
    ),
    (("x=Bx3:int64",), "B=2,S=4", "--size gives the letter S, which no --input uses"),
    (("x=Bx3:int64",), "B", "--size 'B' cannot be read at 'B'"),
    (("x=Bx3:int64",), "B=two", "cannot be read at 'B=two'"),
    (("x=Bx3:int64",), "B=0", "gives B the size 0"),
    (("x=Bx3:int64",), "B=2,B=3", "gives B twice"),
    ((), "B=2", "which no --input uses"),
]


@pytest.mark.parametrize(("specs", "size", "words"), MALFORMED)
def test_malformed_options_are_sentences(
    specs: tuple[str, ...], size: str | None, words: str
) -> None:
    with pytest.raises(InputError, match=words) as caught:
        examples(*specs, size=size)
    assert "\n" not in str(caught.value)


def test_arrays_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, np.ones((2, 3), np.float32), np.zeros(2, np.int64), mask=np.ones(2, bool))
    made = examples("extra=4:float32", file=path)
    assert [a.dtype for a in made.args] == [torch.float32, torch.int64]
    assert list(made.kwargs) == ["mask", "extra"] and made.dynamic is None
    with pytest.raises(InputError, match="'mask' is given twice"):
        examples("mask=2:bool", file=path)


def test_files_that_are_no_inputs_are_sentences(tmp_path: Path) -> None:
    np.savez(tmp_path / "pickle.npz", a=np.array([object()], dtype=object))
    np.savez(tmp_path / "text.npz", a=np.array(["a"]))
    np.save(tmp_path / "one.npy", np.ones(2))
    (tmp_path / "junk.npz").write_bytes(b"junk")
    with zipfile.ZipFile(tmp_path / "lies.npz", "w") as archive:
        header = b"\x93NUMPY\x01\x00"
        text = b"{'descr': '<f4', 'fortran_order': False, 'shape': (9,), }\n"
        archive.writestr("a.npy", header + len(text).to_bytes(2, "little") + text)
    for name in ("pickle.npz", "text.npz", "one.npy", "junk.npz", "lies.npz"):
        with pytest.raises(InputError, match=f"{name} holds no example inputs"):
            examples(file=tmp_path / name)
    with pytest.raises(ArtefactError, match="does not exist"):
        examples(file=tmp_path / "none.npz")


def test_an_array_above_the_limit_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez_compressed(tmp_path / "zeros.npz", a=np.zeros(1000))
    monkeypatch.setattr("opdf_compile.files.arrays.LARGEST_BYTES", 1000)
    with pytest.raises(InputError, match="would unpack to 8128"):
        examples(file=tmp_path / "zeros.npz")


def test_renaming_axes_never_merges_two_letters() -> None:
    made = examples("x=Bx3:float32", "y=Cx3:float32", "z=B:float32", size="B=2,C=2")
    renamed = rename_axes(made, lambda name, axis, letter: "batch_size")
    assert renamed.dynamic == {"x": ("batch_size", 3), "y": ("C", 3), "z": ("batch_size",)}
    assert rename_axes(ExampleInputs(), lambda *_: "never").dynamic is None
