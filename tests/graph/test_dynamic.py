"""`dynamic`: letters by axis in two notations, of modules and of programs; what fits neither."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from opdf_compile.errors import InputError
from opdf_compile.graph import trace


class Two(nn.Module):
    """Two inputs that need not be of one length."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 4), nn.Linear(3, 4)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.left(x), self.right(y)


EXAMPLE = (torch.randn(4, 3), torch.randn(5, 3))
DEFAULT = {0: "y_axis_0"}


def program() -> ExportedProgram:
    """With x free in its first axis, and y of one size."""
    shapes = {"x": {0: Dim.DYNAMIC}, "y": None}
    return torch.export.export(Two().eval(), EXAMPLE, dynamic_shapes=shapes, strict=False)


@pytest.mark.parametrize(
    ("dynamic", "axes"),
    [
        ({"x": ("n", 3)}, {"x": {0: "n"}, "y": DEFAULT}),
        ({"x": {0: "n"}}, {"x": {0: "n"}, "y": DEFAULT}),
        ({"x": {-2: "n", 1: 3}}, {"x": {0: "n"}, "y": DEFAULT}),
        ({"x": {1: None}, "y": (None, None)}, {"x": {}, "y": {}}),
        ({"x": {0: "n"}, "y": {0: "m"}}, {"x": {0: "n"}, "y": {0: "m"}}),
    ],
)
def test_axes_of_a_module(dynamic: dict, axes: dict) -> None:
    traced = trace(Two(), EXAMPLE, dynamic=dynamic)
    assert (traced.axis_names, traced.notes) == (axes, ())
    assert trace(Two(), EXAMPLE, dynamic=traced.axis_names).axis_names == axes


@pytest.mark.parametrize(
    ("dynamic", "letter", "notes"),
    [
        (None, "batch_size", []),
        ({"x": {0: "rows"}}, "rows", []),
        ({"x": ("rows", 3)}, "rows", []),
        ({"x": (None, 3)}, "batch_size", []),
        (
            {"y": {0: "rows"}},
            "batch_size",
            ["axis 0 (rows) of y is fixed at 5: the model does not allow another size there"],
        ),
    ],
)
def test_axes_of_a_program_keep_its_freedom(dynamic: dict, letter: str, notes: list[str]) -> None:
    traced = trace(program(), dynamic=dynamic)
    assert traced.axis_names == {"x": {0: letter}, "y": {}}
    assert list(traced.notes[1:]) == notes


def test_a_first_axis_of_another_size_is_no_batch() -> None:
    apart = {"x": {0: "batch_size"}, "y": {0: "y_axis_0"}}
    assert trace(Two(), EXAMPLE).axis_names == apart
    shapes = {"x": {0: Dim.DYNAMIC}, "y": {0: Dim.DYNAMIC}}
    free = torch.export.export(Two().eval(), EXAMPLE, dynamic_shapes=shapes, strict=False)
    assert trace(free).axis_names == apart
    one = dict.fromkeys("xy", {0: "batch_size"})
    assert trace(Two(), (torch.randn(4, 3), torch.randn(4, 3))).axis_names == one


def test_a_program_of_one_size_has_no_free_axis() -> None:
    fixed = torch.export.export(Two().eval(), EXAMPLE, strict=False)
    assert trace(fixed, dynamic=False).axis_names == {"x": {}, "y": {}}


@pytest.mark.parametrize(
    ("dynamic", "sentence"),
    [
        (True, r"dynamic is True, wanted None for the first axis .*, False for none, or a mapping"),
        (["x"], r"dynamic is \['x'\], wanted None .* as \{\"x\": \[\"batch\", 3\]\}"),
        ({"z": {0: "n"}}, r"dynamic names the input 'z', the tensor inputs are x, y"),
        ({"x": 5}, r"dynamic gives 5 for 'x', wanted one letter or number per axis, or a mapping"),
        ({"x": ("n",)}, r"dynamic gives 1 axes for 'x', the example has 2"),
        ({"x": {2: "n"}}, r"dynamic names axis 2 of 'x', the example has 2 axes; count them"),
        ({"x": {"0": "n"}}, r"dynamic names axis '0' of 'x'"),
        ({"x": (Dim("n"), 3)}, r"gives Dim\('n', .* for axis 0 of 'x', wanted a letter for a free"),
        ({"x": {1: 2.5}}, r"gives 2.5 for axis 1 of 'x', wanted a letter for a free axis"),
    ],
)
def test_no_form_of_dynamic(dynamic: object, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        trace(Two(), EXAMPLE, dynamic=dynamic)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=sentence):
        trace(program(), dynamic=dynamic)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("dynamic", "sentence"),
    [
        ({"x": ("n", 7)}, r"dynamic gives 7 for axis 1 of 'x', .* or the example's size, 3"),
        (
            {"x": ("n", 3), "y": ("n", 3)},
            r"axis 0 of 'x' and axis 0 of 'y' one letter, 'n', and the example has 4 and 5 there, "
            r"wanted one size; give them two letters",
        ),
    ],
)
def test_an_example_that_says_otherwise(dynamic: dict, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        trace(Two(), EXAMPLE, dynamic=dynamic)


@pytest.mark.parametrize(
    ("dynamic", "sentence"),
    [
        (False, r"asks for a fixed size in axis 0 of 'x', and the program keeps it free"),
        ({"x": (4, 3)}, r"asks for a fixed size in axis 0 of 'x', and the program keeps it free"),
        ({"x": ("n", 7)}, r"gives 7 for axis 1 of 'x', which the program has fixed at 3"),
    ],
)
def test_a_program_that_has_it_otherwise(dynamic: object, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        trace(program(), dynamic=dynamic)  # type: ignore[arg-type]
