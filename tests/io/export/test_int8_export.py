"""`export_onnx(dtype="int8", calibrate=...)`: the pair it writes, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.artefacts import is_quantised, read_check, recorded_parameters
from opdf_compile.errors import ArtefactError, InputError, UserError
from opdf_compile.io import load_onnx

ROWS = np.random.default_rng(0).standard_normal((64, 3, 8, 8)).astype(np.float32)
ASKED = "structure,numerics"


class Stack(nn.Module):
    """A convolution whose channels differ in size, as after training, and one that reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.second, self.last = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)
        with torch.no_grad():
            self.norm.weight.copy_(torch.tensor([3.0, 2.0, 1.0, 1.0, 1e-2, 1e-2, 1e-2, 1e-2]))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(self.first(x)).relu()
        found: Tensor = self.head(self.last(self.second(hidden)).relu().mean((2, 3)))
        return found


def student(seed: int = 0) -> Stack:
    torch.manual_seed(seed)
    return fed(Stack())


def fed(model: nn.Module) -> Any:
    """With the statistics that its batch norms find in the data."""
    model.train()
    with torch.no_grad():
        for _ in range(60):
            model(torch.from_numpy(ROWS))
    return model.eval()


def moved(model: Stack) -> Stack:
    """Each weight moved by a tenth of its size, as by some training."""
    torch.manual_seed(1)
    made = Stack()
    made.load_state_dict(model.state_dict())
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.1 * parameter.abs().mean() * torch.randn_like(parameter)
    return fed(made)


def example() -> Tensor:
    return torch.from_numpy(ROWS[:16])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int8")
    rows = folder / "rows.npz"
    np.savez(rows, x=ROWS, labels=np.zeros(64))
    untouched = student()
    out = folder / "bundle"
    opdf.export_onnx(
        moved(untouched), (example(),), out, reference=untouched, dtype="int8", calibrate=rows
    )
    return out


def test_the_pair_is_quantised_alike_and_has_parity(bundle: Path) -> None:
    for name in ("student.onnx", "reference/reference.onnx"):
        assert is_quantised(onnx.load(bundle / name))
    report = opdf.verify(bundle, only=ASKED, device="cpu")
    assert report, str(report)
    text = str(report)
    assert "int8 was calibrated with 64 rows" in text and "rewritten after export" not in text
    assert "floating-point initialisers" not in text  # The record of parameters holds.


def test_the_check_data_is_that_of_the_float32_model_on_the_calibration_rows(bundle: Path) -> None:
    data = read_check(bundle / "student.check.npz")
    assert data.dtype == "float32" and len(data.samples) == 4
    x = np.concatenate([sample.inputs["x"] for sample in data.samples])
    assert np.array_equal(x, ROWS)
    with torch.no_grad():
        wanted = moved(student()).double()(torch.from_numpy(ROWS).double()).numpy()
    found = np.concatenate([sample.outputs["output"] for sample in data.samples])
    assert np.abs(found - wanted).max() < 1e-12


def test_what_is_no_parameter_is_compared_by_value(bundle: Path) -> None:
    model = onnx.load(bundle / "student.onnx")
    names = recorded_parameters(model, "it")
    assert names is not None
    others = {t.name: t for t in model.graph.initializer if t.name not in names}
    assert any(t.data_type == onnx.TensorProto.INT64 for t in others.values())


def test_one_file_gets_its_reference_beside_it(tmp_path: Path) -> None:
    untouched = student()
    opdf.export_onnx(
        untouched,
        (example(),),
        tmp_path / "s.onnx",
        reference=untouched,
        dtype="int8",
        calibrate={"x": torch.from_numpy(ROWS)},
        opset=17,
    )
    assert onnx.load(tmp_path / "s.onnx").opset_import[0].version == 17
    report = opdf.verify(
        tmp_path / "s.onnx", tmp_path / "s.reference.onnx", only=ASKED, device="cpu"
    )
    assert report, str(report)


def folded_branches() -> Stack:
    """Trained as RepVGG branches, one of which is the identity with a batch norm of its own."""
    model = student()
    traced = opdf.trace(model, (example(),))
    plan = opdf.plan(traced, rules={"second*": "repvgg(start=published)", "*": "none"})
    training = opdf.branch(model, plan)
    folded = opdf.fold(fed(training))
    assert isinstance(folded, Stack)
    return folded.eval()


def test_folded_branches_collapse_in_int8_and_the_plain_student_does_not(tmp_path: Path) -> None:
    """The identity branch divides by the spread of its channel: where a channel is small, the fold
    has a weight a hundred times as large as the others of its kernel."""
    candidate, untouched = folded_branches(), student()
    kernel = candidate.second.weight.abs()
    assert (kernel.amax((1, 2, 3)) / kernel.mean((1, 2, 3))).max() > 20
    for dtype, rows in (("fp32", None), ("int8", {"x": ROWS})):
        out = tmp_path / dtype
        options: dict[str, Any] = {"dtype": dtype, "calibrate": rows}
        opdf.export_onnx(candidate, (example(),), out, reference=untouched, **options)
    assert opdf.verify(tmp_path / "fp32", only=ASKED, device="cpu")
    report = opdf.verify(tmp_path / "int8", only=ASKED, device="cpu")
    (dropped,) = report.numerics.drops
    assert dropped.reference is not None
    assert report.structure.verdict == "pass" and report.numerics.verdict == "fail", str(report)
    assert dropped.candidate.relative_rms > 5 * dropped.reference.relative_rms


def test_an_onnx_student_is_quantised_too(tmp_path: Path) -> None:
    opdf.export_onnx(student(), (example(),), tmp_path / "plain.onnx", opset=17)
    model = load_onnx(tmp_path / "plain.onnx")
    opdf.export_onnx(
        model, (), tmp_path / "b", reference=model, dtype="int8", calibrate={"x": ROWS}
    )
    report = opdf.verify(tmp_path / "b", only=ASKED, device="cpu")
    assert report, str(report)


def calibrated(folder: Path, rows: Any, **options: Any) -> None:
    model = nn.Linear(4, 2)
    chosen = {"dtype": "int8", "calibrate": rows, **options}
    opdf.export_onnx(model, (torch.randn(3, 4),), folder / "a.onnx", **chosen)


FINE = np.zeros((5, 4), np.float32)


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ({"y": FINE}, r"lack the input 'input' \(they hold y\), the model takes input"),
        ({"input": FINE.astype(np.int64)}, r"has the dtype int64, the model takes .*float32"),
        ({"input": np.zeros((5, 3), np.float32)}, r"has the shape \(5, 3\), the model takes"),
        ({"input": np.zeros(4, np.float32)}, r"has the shape \(4,\), the model takes"),
        ({"input": FINE[:0]}, "the calibration rows hold no row, wanted at least one; add some"),
        ({"input": FINE + np.float32("nan")}, "holds NaN or infinity, wanted finite numbers"),
        ({}, "the calibration rows hold no array, wanted input; add them"),
        (7, "the calibration rows is an? int.*wanted an .npz file, or arrays by name"),
        (None, "int8 was asked for without calibration data.*--calibrate F.npz"),
    ],
)
def test_rows_that_do_not_fit_are_one_sentence(tmp_path: Path, rows: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as caught:
        calibrated(tmp_path, rows)
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []


def test_rows_without_int8_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="calibration data was given and the dtype is fp16"):
        calibrated(tmp_path, {"input": FINE}, dtype="fp16")
    with pytest.raises(InputError, match="the dtype is not given, wanted int8"):
        calibrated(tmp_path, {"input": FINE}, dtype=None)


def test_a_fixed_batch_takes_whole_batches(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="hold 5 rows and the model takes 3 at once"):
        calibrated(tmp_path, {"input": FINE}, dynamic=False)
    calibrated(tmp_path, {"input": FINE[:3], "labels": FINE[:3, 0]}, dynamic=False)
    assert [s.inputs["input"].shape for s in read_check(tmp_path / "a.check.npz").samples][0] == (
        3,
        4,
    )


def test_files_that_hold_no_rows(tmp_path: Path) -> None:
    objects = tmp_path / "objects.npz"
    np.savez(objects, input=np.array([{}], dtype=object))
    text = tmp_path / "text.npz"
    text.write_text("no archive")
    for file in (objects, text):
        with pytest.raises(InputError, match=r"holds no arrays .* numpy.savez"):
            calibrated(tmp_path, file)
    with pytest.raises(ArtefactError, match="does not exist"):
        calibrated(tmp_path, tmp_path / "none.npz")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["objects.npz", "text.npz"]


def test_rows_are_given_as_samples_are(tmp_path: Path) -> None:
    """Another width of float, and rows under numbers, mean what they mean in samples=."""
    made = []
    for rows in ({"input": FINE}, {"input": FINE.astype(np.float64)}, {"input@0": FINE}):
        torch.manual_seed(0)
        calibrated(tmp_path, rows)
        made.append((tmp_path / "a.onnx").read_bytes())
    assert made[0] == made[1] == made[2]


class Two(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


def test_inputs_have_as_many_rows(tmp_path: Path) -> None:
    x = torch.randn(2, 4)
    rows = {"x": FINE, "y": FINE[:4]}
    with pytest.raises(UserError, match=r"hold 5 rows of 'x' and 4 of 'y'"):
        opdf.export_onnx(Two(), (x, x), tmp_path / "a.onnx", dtype="int8", calibrate=rows)
