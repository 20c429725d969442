"""ONNX in, ONNX out: the same file with other numbers in its matched weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_students as models
import onnxruntime as ort
import pytest
import torch
from torch import Tensor

import opdf_compile as opdf
from opdf_compile.artefacts.linking import link
from opdf_compile.artefacts.record import recorded_parameters
from opdf_compile.io.onnx_student.student import OnnxStudent
from opdf_compile.parity.structure.compare import compare_structure

Model = Any


def outputs(found: Any) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else list(found.values())


def runtime(path: Path, inputs: dict[str, Any]) -> list[np.ndarray]:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [np.asarray(y) for y in session.run(None, inputs)]


def without(path: Path, names: set[str]) -> bytes:
    """The file without the numbers of some tensors, and without the record of parameters."""
    model = onnx.load(str(path))
    for constant in link(model).main.constants():
        if constant.name in names:
            for field in ("raw_data", "float_data", "int32_data", "double_data"):
                constant.proto.ClearField(field)
    kept = [entry for entry in model.metadata_props if not entry.key.startswith("opdf.")]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    return model.SerializeToString(deterministic=True)


def loss_of(found: Any) -> Tensor:
    """Fourth powers: the squares of a LayerNorm's output add up to the same whatever it reads."""
    return sum((y.float().pow(4).mean() for y in outputs(found)), torch.zeros(()))


def round_trip(model: Model, folder: Path, step: float = 1e-4) -> OnnxStudent:
    student = opdf.load_onnx(model.path, fixed=model.fixed)
    traced = opdf.trace(student, (), model.inputs, dynamic=student.dynamic)
    report = opdf.match(traced)
    assert len(report.matches) == model.matched
    trainable = {name for name, p in student.named_parameters() if p.requires_grad}
    assert {m.key for m in report.matches} <= trainable

    expanded = opdf.expand(traced, opdf.plan(traced, cores=3))
    unchanged = opdf.fold(expanded)
    for name, tensor in unchanged.state_dict().items():
        before = student.state_dict()[name]
        if name not in trainable:
            assert torch.equal(tensor, before)
        assert (tensor - before).float().norm() <= 1e-3 * _eps(before) / _eps(torch.zeros(1)) * (
            before.float().norm()
        )
    trained = [p for p in expanded.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=step)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = loss_of(expanded(**model.inputs))
        # Relative to the first: a detector's sigmoid on noise leaves gradients that underflow.
        (loss / (losses[0] if losses else float(loss.detach()))).backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]

    folded = opdf.fold(expanded)
    assert isinstance(folded, OnnxStudent)
    out = folder / "out.onnx"
    opdf.export_onnx(folded, (), out, model.inputs)
    matched = set(recorded_parameters(onnx.load(str(out)), "the file") or ())
    assert without(out, matched) == without(model.path, matched)
    changed = [
        n for n in matched if without(out, matched - {n}) != without(model.path, matched - {n})
    ]
    assert changed
    assert compare_structure(out, model.path)
    # The runtime's sigmoid is off by 1e-7 wherever it is: a detector that sees noise and answers
    # 1e-5 cannot be judged by its numbers, whatever its weights.
    largest = max(float(y.detach().abs().max()) for y in outputs(folded(**model.inputs)))
    only = ("structure", "numerics") if largest > 1e-3 else ("structure",)
    parity = opdf.verify(out, folder / "same.onnx", only=only)
    assert parity, parity
    return student


def _eps(tensor: Tensor) -> float:
    return torch.finfo(tensor.dtype).eps if tensor.dtype.is_floating_point else 0.0


def require_exact(model: Model, folder: Path, *, judged: bool = True) -> None:
    """The import of an untouched file against the runtime, and by verify's own judgement."""
    student = opdf.load_onnx(model.path, fixed=model.fixed)
    same = folder / "same.onnx"
    opdf.export_onnx(student, (), same, model.inputs)
    names = student.source.inputs
    given = {names[key]: value.numpy() for key, value in model.inputs.items()}
    given |= {key: np.array(value.items()[0]) for key, value in student.source.fixed.items()}
    with torch.no_grad():
        ours = outputs(student(**model.inputs))
    for mine, theirs in zip(ours, runtime(model.path, given), strict=True):
        assert tuple(mine.shape) == theirs.shape
        scale = max(float(np.abs(theirs).max()), 1.0)
        np.testing.assert_allclose(mine.numpy(), theirs, rtol=0, atol=128 * _eps(mine) * scale)
    only = ("structure", "numerics") if judged else ("structure",)
    assert opdf.verify(same, model.path, only=only)


@pytest.mark.parametrize("make", models.QUICK, ids=lambda make: make.__name__)
def test_a_file_made_by_hand_comes_back(make: Callable[[Path], Model], tmp_path: Path) -> None:
    model = make(tmp_path)
    require_exact(model, tmp_path)
    round_trip(model, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("make", models.SLOW, ids=lambda make: make.__name__)
def test_a_file_of_other_producers_comes_back(
    make: Callable[[Path], Model], tmp_path: Path
) -> None:
    model = make(tmp_path)
    require_exact(model, tmp_path)
    round_trip(model, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("entry", models.SHIPPED, ids=lambda entry: Path(entry[1]).stem)
def test_a_file_out_of_a_package_comes_back(
    entry: Any, asset: Callable[[str, str], Path], tmp_path: Path
) -> None:
    package, member, shapes, matched, fixed = entry
    inputs = {name: torch.randn(shape) for name, shape in shapes.items()}
    model = models.Model(asset(package, member), inputs, matched, fixed)
    require_exact(model, tmp_path, judged=False)
    round_trip(model, tmp_path, step=1e-5)


def test_the_output_is_the_input_where_nothing_was_trained(tmp_path: Path) -> None:
    model = models.shared(tmp_path)
    out = tmp_path / "out.onnx"
    opdf.export_onnx(opdf.load_onnx(model.path), (), out, model.inputs)
    assert without(out, set()) == without(model.path, set())


def _edited(path: Path, edit: Callable[[onnx.ModelProto], object]) -> Path:
    changed = onnx.load(str(path))
    edit(changed)
    target = path.with_name("edited.onnx")
    onnx.save_model(changed, str(target))
    return target


def _bias(model: onnx.ModelProto) -> None:
    (tensor,) = (t for t in model.graph.initializer if t.name == "w")
    values = onnx.numpy_helper.to_array(tensor) * np.float32(1.01)
    tensor.raw_data = values.tobytes()


def _node(model: onnx.ModelProto) -> None:
    model.graph.node[-1].output[0] = "before"
    model.graph.node.append(onnx.helper.make_node("Relu", ["before"], ["out.y"]))


def _attribute(model: onnx.ModelProto) -> None:
    (node,) = (n for n in model.graph.node if n.op_type == "Transpose")
    node.attribute[0].ints[:] = [0, 1]


def _shape(model: onnx.ModelProto) -> None:
    (tensor,) = (t for t in model.graph.initializer if t.name == "w.inner")
    tensor.dims[:] = [4, 8]


@pytest.mark.parametrize("edit", [_bias, _node, _attribute, _shape], ids=lambda e: e.__name__)
def test_structure_still_refutes_a_file_that_differs_elsewhere(
    edit: Callable[[onnx.ModelProto], object], tmp_path: Path
) -> None:
    model = models.shared(tmp_path)
    out = tmp_path / "out.onnx"
    opdf.export_onnx(opdf.load_onnx(model.path), (), out, model.inputs)
    assert compare_structure(out, model.path)
    assert not compare_structure(_edited(out, edit), model.path)


def test_training_all_moves_biases_and_says_so(tmp_path: Path) -> None:
    model = models.old_gemm(tmp_path)
    student = opdf.load_onnx(model.path, train="all")
    assert {n for n, p in student.named_parameters() if p.requires_grad} == {"a", "b", "c", "d"}
    optimizer = opdf.Overparam(student, torch.optim.SGD, lr=1e-2, cores=2)
    loss_of(student(**model.inputs)).backward()
    optimizer.step()
    folded = opdf.fold(optimizer)
    out = tmp_path / "out.onnx"
    opdf.export_onnx(folded, (), out, model.inputs)
    assert without(out, {"a", "b", "c", "d"}) == without(model.path, {"a", "b", "c", "d"})
    assert without(out, {"a", "b"}) != without(model.path, {"a", "b"})
    assert opdf.verify(out, model.path, only=("structure", "numerics"))


def test_the_hoisted_form_trains_the_same_weights(tmp_path: Path) -> None:
    model = models.shared(tmp_path)
    student = opdf.load_onnx(model.path)
    optimizer = opdf.Overparam(student, torch.optim.SGD, lr=1e-2, cores=3)
    before = float(loss_of(student(**model.inputs)))
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(student(**model.inputs)).backward()
        optimizer.step()
    assert float(loss_of(student(**model.inputs))) < before
