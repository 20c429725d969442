"""Numbers that a half dtype cannot hold: fitted where nothing changes, refused elsewhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from quick import quick
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.artefacts.check_file import CheckData, check_path, read_check, write_check
from opdf_compile.errors import ExportError
from opdf_compile.files.atomic import sha256
from opdf_compile.io.evidence.evaluating import gather_check_data
from opdf_compile.io.evidence.half_range import fit_numbers, narrowed, too_large

Masking = Callable[[Tensor, Tensor], Tensor]
LOWEST = torch.finfo(torch.float32).min
MASK = torch.tensor([[True, True, True, False, False], [True] * 5])


class Attention(nn.Module):
    def __init__(self, masking: Masking) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.query, self.masking = nn.Linear(8, 8), masking

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        scores = self.masking(self.query(x) @ x.transpose(1, 2), ~mask[:, None, :])
        return scores.softmax(-1) @ x


def without_gradient(s: Tensor, gone: Tensor) -> Tensor:
    with torch.no_grad():
        return s.masked_fill(gone, -1e9)


MASKINGS: dict[str, Masking] = {
    "masked_fill": lambda s, gone: s.masked_fill(gone, -1e9),
    "masked_fill in place": lambda s, gone: s.clone().masked_fill_(gone, -1e9),
    "an integer": lambda s, gone: s.masked_fill(gone, -(10**9)),
    "lowest": lambda s, gone: s.masked_fill(gone, LOWEST),
    "full_like": lambda s, gone: torch.where(gone, torch.full_like(s, -1e9), s),
    "full": lambda s, gone: torch.where(gone, torch.full((), -1e9), s),
    "where": lambda s, gone: torch.where(gone, -1e9, s),
    "a tensor": lambda s, gone: torch.where(gone, torch.tensor(-1e9), s),
    "added": lambda s, gone: s + gone.to(s.dtype) * -1e9,
    "added by a tensor": lambda s, gone: s + gone.to(s.dtype) * torch.tensor(-1e9),
    "alpha": lambda s, gone: torch.add(s, gone.to(s.dtype), alpha=-1e9),
    "nested": without_gradient,
}


def inputs() -> tuple[Tensor, Tensor]:
    return torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1)), MASK


def exported(model: nn.Module, args: tuple[Tensor, ...], path: Path, dtype: str = "fp16") -> Path:
    return opdf.export_onnx(model.eval(), args, path, dtype=dtype)


def notes_of(path: Path) -> tuple[str, ...]:
    return read_check(check_path(path)).notes


def gathered(model: nn.Module, args: tuple[Tensor, ...]) -> CheckData:
    """The evidence of a half-precision export, without the export."""
    halves = tuple(a.half() if a.is_floating_point() else a for a in args)
    traced = opdf.trace(model.half().eval(), halves, phases=("eval",))
    return gather_check_data(
        traced.programs["eval"],
        (halves, {}),
        axis_names=traced.axis_names,
        output_names=traced.output_names,
        dtype="float16",
    )


# The others give the graph an operator and a number as one of these does.
NUMBERS = {"masked_fill", "an integer", "lowest", "full", "a tensor", "added", "alpha", "nested"}


@pytest.mark.parametrize("name", quick(MASKINGS, NUMBERS))
def test_a_mask_becomes_the_lowest_number(name: str, caplog: pytest.LogCaptureFixture) -> None:
    data = gathered(Attention(MASKINGS[name]), inputs())
    (note,) = data.notes
    assert note.startswith("float16 cannot hold -") and note.endswith("the file has -65504")
    assert "in the forward of Attention (test_half_range.py:" in note
    assert note in caplog.text
    assert all(np.isfinite(s.error["output"]) for s in data.samples)


@pytest.mark.parametrize("name", quick(MASKINGS, {"added by a tensor"}))
def test_the_file_passes_and_the_report_tells(tmp_path: Path, name: str) -> None:
    file = exported(Attention(MASKINGS[name]), inputs(), tmp_path / "m.onnx")
    (note,) = notes_of(file)
    report = opdf.verify(file, only="numerics", device="cpu")
    assert report, str(report)
    assert f"numerics: {note}" in str(report)


@pytest.fixture(scope="module")
def added(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with its evidence; nobody changes them."""
    folder = tmp_path_factory.mktemp("added")
    return exported(Attention(MASKINGS["added"]), inputs(), folder / "m.onnx")


def test_other_weights_are_refuted_all_the_same(added: Path, tmp_path: Path) -> None:
    wrong = Attention(MASKINGS["added"])
    with torch.no_grad():
        wrong.query.weight.mul_(1.2)
    other = exported(wrong, inputs(), tmp_path / "wrong.onnx")
    # The evidence of the one, signed for the other.
    data = dataclasses.replace(read_check(check_path(added)), onnx_sha256=sha256(other))
    write_check(check_path(other), data)
    assert opdf.verify(other, only="numerics", device="cpu").exit_code == 1


def test_what_fits_is_left_alone() -> None:
    assert gathered(Attention(lambda s, gone: s.masked_fill(gone, -1e4)), inputs()).notes == ()
    program = torch.export.export(Attention(MASKINGS["masked_fill"]), inputs(), strict=False)
    assert fit_numbers(program) == (program, ())


@pytest.mark.slow
def test_bfloat16_has_its_own_lowest_number(tmp_path: Path) -> None:
    for name, count in (("masked_fill", 0), ("lowest", 1)):
        file = exported(Attention(MASKINGS[name]), inputs(), tmp_path / f"{count}.onnx", "bf16")
        notes = notes_of(file)
        assert len(notes) == count and all("-3.38953e+38" in note for note in notes)


def test_a_model_that_is_half_already(tmp_path: Path) -> None:
    x, mask = inputs()
    model = Attention(MASKINGS["masked_fill"]).half().eval()
    file = opdf.export_onnx(model, (x.half(), mask), tmp_path / "m.onnx")
    assert len(notes_of(file)) == 1 and opdf.verify(file, only="numerics", device="cpu")


@pytest.mark.parametrize(
    "name",
    # A number of the graph; tensors of a program are fitted below.
    quick(["masked_fill", "added", "a tensor"], {"masked_fill"}),
)
def test_a_program_without_its_module(tmp_path: Path, name: str) -> None:
    program = torch.export.export(Attention(MASKINGS[name]).eval(), inputs(), strict=False)
    before = str(program.graph)
    file = opdf.export_onnx(program, (), tmp_path / "m.onnx", dtype="fp16")
    assert len(notes_of(file)) == 1 and opdf.verify(file, only="numerics", device="cpu")
    assert str(program.graph) == before


def test_the_truth_keeps_the_models_own_number() -> None:
    """The row that sees nothing but one score tells -1e9 from -65504 in float64."""
    data = gathered(Attention(MASKINGS["masked_fill"]), inputs())
    model = Attention(MASKINGS["masked_fill"]).half().double().eval()
    x = torch.from_numpy(data.samples[0].inputs["x"]).double()
    np.testing.assert_allclose(data.samples[0].outputs["output"], model(x, MASK).detach(), 1e-12)


class Scaled(nn.Module):
    def __init__(self, scale: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.head, self.scale = nn.Linear(8, 4), scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale(self.head(x))


REFUSED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "a factor": (lambda h: (h.abs() * 1e6).log(), r"cannot hold 1e\+06 of aten.mul"),
    "a sum": (lambda h: (h + 1e5) / 1e3, r"cannot hold 100000 of aten.add"),
    "an epsilon": (lambda h: (h.relu() + 1e-12).log(), r"rounds to 0 1e-12 of aten.add"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_number_that_matters_is_refused_by_name(name: str) -> None:
    scale, sentence = REFUSED[name]
    where = "in the forward of Scaled .*, which changes"
    with pytest.raises(ExportError, match=f"{sentence} {where}"):
        gathered(Scaled(scale), (torch.randn(16, 8),))


def test_an_example_of_zeros_does_not_hide_a_factor() -> None:
    model = Scaled(lambda h: h * 1e6)
    nn.init.zeros_(model.head.bias)
    with pytest.raises(ExportError, match=r"cannot hold 1e\+06 of aten.mul .*, which changes"):
        gathered(model, (torch.zeros(16, 8),))


EPSILONS: dict[str, Callable[[Tensor], Tensor]] = {
    "normalize": lambda h: F.normalize(h.relu() * (h.sum(-1, keepdim=True) > 0), dim=-1),
    "added": lambda h: h / (h.std(-1, keepdim=True) + 1e-8),
}


@pytest.mark.parametrize("name", quick(EPSILONS, {"normalize"}))
def test_an_epsilon_stays_above_zero(tmp_path: Path, name: str) -> None:
    file = exported(Scaled(EPSILONS[name]), (torch.randn(16, 8),), tmp_path / "m.onnx")
    (note,) = notes_of(file)
    assert note.startswith("float16 rounds to 0 1e-") and note.endswith("has 5.96046e-08")
    report = opdf.verify(file, only="numerics", device="cpu")
    assert report, str(report)


def test_epsilons_that_are_computed_in_float32_are_no_matter() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8, eps=1e-12))
    assert gathered(model, (torch.randn(4, 8),)).notes == ()


class Buffered(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.query = nn.Linear(8, 8)
        self.register_buffer("causal", torch.triu(torch.full((5, 5), value), 1))

    def forward(self, x: Tensor) -> Tensor:
        return (self.query(x) @ x.transpose(1, 2) + self.causal).softmax(-1) @ x


def test_a_buffer_that_masks_is_fitted(tmp_path: Path) -> None:
    model = Buffered(-1e9).eval()
    for source in (model, torch.export.export(model, inputs()[:1], strict=False)):
        file = opdf.export_onnx(source, inputs()[:1], tmp_path / "m.onnx", dtype="fp16")
        (note,) = notes_of(file)
        assert note.startswith("float16 cannot hold -1e+09 of the tensor 'causal'")
        values = {t.name: numpy_helper.to_array(t) for t in onnx.load(file).graph.initializer}
        assert np.isfinite(values["causal"]).all() and values["causal"].min() == -65504
        assert opdf.verify(file, only="numerics", device="cpu")
    assert float(model.causal.min()) == -1e9


def test_a_weight_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    model = Scaled(lambda h: h / 1e4)
    with torch.no_grad():
        model.head.weight[0, 0] = 1e6
    with pytest.raises(ExportError, match="the tensor 'head.weight'.*which changes the output"):
        exported(model, (torch.eye(8),), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_infinities_and_numbers_in_range_stay() -> None:
    given = torch.tensor([float("inf"), float("-inf"), float("nan"), 1e9, -1e9, 3.0])
    made = narrowed(given, torch.float16)
    wanted = torch.tensor([float("inf"), float("-inf"), float("nan"), 65504, -65504, 3.0]).half()
    assert torch.equal(made.nan_to_num(7), wanted.nan_to_num(7))
    assert set(too_large({"a": given, "b": torch.ones(2)}, torch.float16)) == {"a"}
    assert too_large({"a": given}, torch.float32) == {}


def test_check_data_for_a_file_of_another_tool(added: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs.onnx"
    theirs.write_bytes(added.read_bytes())
    x, mask = inputs()
    given = {"x": x.half().numpy(), "mask": mask.numpy()}
    opdf.write_check_data(Attention(MASKINGS["added"]).eval(), theirs, given)
    assert len(notes_of(theirs)) == 1
    assert opdf.verify(theirs, only="numerics", device="cpu")
