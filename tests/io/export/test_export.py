"""Export: names, axes, values under the runtime, and a graph that no parameter value can change."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn
from torch.export import exported_program

from opdf_compile.artefacts.check_file import read_check
from opdf_compile.artefacts.record import recorded_parameters
from opdf_compile.errors import ArtefactError, ExportError
from opdf_compile.graph.tracing import trace
from opdf_compile.io.export.build import build_export
from opdf_compile.io.export.exporting import export_onnx
from opdf_compile.io.export.save import stage
from opdf_compile.planning.choose import plan
from opdf_compile.training.folding import fold
from opdf_compile.training.inline.expanding import expand


class ConvNet(nn.Module):
    """A residual block with BatchNorm, dropout and a grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 4)

    def forward(self, image: Tensor) -> Tensor:
        hidden = torch.relu(self.norm(self.stem(image)))
        hidden = hidden + self.grouped(hidden)
        return self.head(self.drop(hidden.mean((2, 3))))


class Scalars(nn.Module):
    """Parameters that value-dependent folding would remove or merge."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.tensor(1.0))
        self.zero = nn.Parameter(torch.tensor(0.0))
        self.left = nn.Parameter(torch.ones(4))
        self.right = nn.Parameter(torch.ones(4))
        self.conv = nn.Conv1d(4, 4, 1)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.conv((x * self.one + self.zero) * self.left[:, None] + self.right[:, None])


class Tied(nn.Module):
    """Many outputs, a tied weight and a constant buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.head = nn.Linear(8, 10, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("shift", torch.arange(8.0), persistent=False)

    def forward(self, ids: Tensor) -> dict[str, Any]:
        hidden = self.embed(ids) + self.shift
        logits = self.head(hidden)
        return {
            "logits": logits,
            "best": logits.argmax(-1),
            "flat": hidden.reshape(-1, 8),
            "both": (logits, ids),
            "ids": ids,
        }


def session(path: Path) -> ort.InferenceSession:
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def signature(path: Path) -> tuple[list[Any], list[Any]]:
    opened = session(path)
    return (
        [(value.name, value.shape) for value in opened.get_inputs()],
        [(value.name, value.shape) for value in opened.get_outputs()],
    )


def shape_of_graph(path: Path) -> Any:
    """Everything about a graph except the values of its parameters."""
    model = onnx.load(str(path))
    parameters = set(recorded(model))
    return (
        [
            (node.op_type, list(node.input), list(node.output), list(map(str, node.attribute)))
            for node in model.graph.node
        ],
        [
            (value.name, list(value.dims), None if value.name in parameters else value.raw_data)
            for value in model.graph.initializer
        ],
    )


def recorded(model: onnx.ModelProto) -> list[str]:
    return sorted(recorded_parameters(model, "the file") or ())


def perturbed(model: nn.Module) -> nn.Module:
    """What training does to a model, as far as a graph could notice."""
    trained = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in trained.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + 0.5)
    return trained


@pytest.fixture(scope="module")
def conv(tmp_path_factory: pytest.TempPathFactory) -> tuple[ConvNet, Path]:
    torch.manual_seed(0)
    model = ConvNet().train()
    model.norm.eval()
    path = tmp_path_factory.mktemp("conv") / "student.onnx"
    return model, export_onnx(model, (torch.rand(1, 3, 8, 8),), path)


def test_runtime_equals_torch_for_every_batch(conv: tuple[ConvNet, Path]) -> None:
    model, path = conv
    evaluated = copy.deepcopy(model).eval()
    opened = session(path)
    for batch in range(1, 9):
        image = torch.rand(batch, 3, 8, 8)
        (found,) = opened.run(None, {"image": image.numpy()})
        np.testing.assert_allclose(found, evaluated(image).detach().numpy(), atol=1e-6)


def test_names_and_axes(conv: tuple[ConvNet, Path]) -> None:
    inputs, outputs = signature(conv[1])
    assert inputs == [("image", ["batch_size", 3, 8, 8])]
    assert outputs == [("output", ["batch_size", 4])]


def test_source_keeps_flags_and_weights(halved: tuple[ConvNet, ConvNet, Path]) -> None:
    model, copied, _path = halved
    before = copied.state_dict()
    assert [m.training for m in model.modules()] == [m.training for m in copied.modules()]
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(before[key].dtype == value.dtype for key, value in model.state_dict().items())


def test_initialisers_are_the_students_keys(conv: tuple[ConvNet, Path]) -> None:
    model, path = conv
    loaded = onnx.load(str(path))
    names = recorded(loaded)
    assert set(names) == {key for key in model.state_dict() if "num_batches" not in key}
    stored = {value.name: onnx.numpy_helper.to_array(value) for value in loaded.graph.initializer}
    for name in names:
        np.testing.assert_array_equal(stored[name], model.state_dict()[name].numpy())


def test_one_file_and_its_evidence(conv: tuple[ConvNet, Path]) -> None:
    assert sorted(file.name for file in conv[1].parent.iterdir()) == [
        "student.check.npz",
        "student.onnx",
    ]
    # Source lines and paths of the exporting machine stay at home.
    assert str(Path(__file__).parent).encode() not in conv[1].read_bytes()


@pytest.fixture(scope="module")
def scalars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scalars") / "m.onnx"
    return export_onnx(Scalars(), (torch.rand(2, 4, 5),), path)


@pytest.fixture(scope="module")
def halved(tmp_path_factory: pytest.TempPathFactory) -> tuple[ConvNet, ConvNet, Path]:
    """A model in single precision, a copy from before its export, and its file in half."""
    path = tmp_path_factory.mktemp("half") / "m.onnx"
    model = ConvNet().train()
    model.norm.eval()
    before = copy.deepcopy(model)
    return model, before, export_onnx(model, (torch.rand(2, 3, 8, 8),), path, dtype="fp16")


@pytest.fixture
def half(halved: tuple[ConvNet, ConvNet, Path]) -> Path:
    return halved[2]


@pytest.mark.parametrize(
    ("make", "example"),
    [
        pytest.param(ConvNet, torch.rand(2, 3, 8, 8), id="convnet", marks=pytest.mark.slow),
        pytest.param(Scalars, torch.rand(2, 4, 5), id="scalars"),
    ],
)
def test_graph_does_not_depend_on_parameter_values(
    make: Callable[[], nn.Module], example: Tensor, scalars: Path, tmp_path: Path
) -> None:
    untouched, first = make(), scalars
    if make is not Scalars:
        first = export_onnx(untouched, (example,), tmp_path / "untouched.onnx")
    second = export_onnx(perturbed(untouched), (example,), tmp_path / "trained.onnx")
    assert shape_of_graph(first) == shape_of_graph(second)


def test_comparison_above_sees_another_graph(conv: tuple[ConvNet, Path], tmp_path: Path) -> None:
    other = ConvNet()
    other.head = nn.Linear(8, 4, bias=False)
    path = export_onnx(other, (torch.rand(2, 3, 8, 8),), tmp_path / "other.onnx")
    assert shape_of_graph(path) != shape_of_graph(conv[1])


@pytest.mark.slow
def test_exporters_own_optimiser_would_depend_on_them() -> None:
    # The reason for our own: if this stops holding, onnx_optimise can go.
    ops = []
    for model in (Scalars(), perturbed(Scalars())):
        program = torch.export.export(model.eval(), (torch.rand(2, 4, 5),))
        translated = torch.onnx.export(program, dynamo=True, verbose=False)
        assert translated is not None
        ops.append([node.op_type for node in translated.model.graph])
    assert ops[0] != ops[1]


def test_scalar_and_equal_parameters_stay(scalars: Path) -> None:
    names = recorded(onnx.load(str(scalars)))
    assert sorted(names) == ["conv.bias", "conv.weight", "left", "one", "right", "zero"]


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tied, Path]:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("tied") / "tied.onnx"
    model = Tied()
    return model, export_onnx(
        model, {"ids": torch.randint(0, 10, (2, 5))}, path, dynamic={"ids": ("B", "S")}
    )


def test_nested_outputs_derived_axes_and_clashes(tied: tuple[Tied, Path]) -> None:
    inputs, outputs = signature(tied[1])
    assert inputs == [("ids", ["B", "S"])]
    assert outputs == [
        ("logits", ["B", "S", 10]),
        ("best", ["B", "S"]),
        ("flat", ["B*S", 8]),
        ("both_0", ["B", "S", 10]),
        ("both_1", ["B", "S"]),
        ("ids_output", ["B", "S"]),
    ]
    assert "s0" not in {part for _, shape in outputs for part in shape}


def test_tied_weight_is_stored_once(tied: tuple[Tied, Path]) -> None:
    names = recorded(onnx.load(str(tied[1])))
    assert len(names) == 1 and names[0] in ("embed.weight", "head.weight")


def test_integer_outputs_keep_their_dtype(tied: tuple[Tied, Path]) -> None:
    data = read_check(tied[1].with_suffix(".check.npz"))
    opened = session(tied[1])
    for sample in data.samples:
        found = dict(zip(data.output_names, opened.run(None, dict(sample.inputs)), strict=True))
        assert sample.outputs["best"].dtype == np.int64
        np.testing.assert_array_equal(found["best"], sample.outputs["best"])
        np.testing.assert_array_equal(found["ids_output"], sample.inputs["ids"])
        assert sample.outputs["logits"].dtype == np.float64


def test_tuple_outputs_are_numbered(tmp_path: Path) -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x + 1, x * 2

    path = export_onnx(Pair(), torch.rand(2, 3), tmp_path / "m.onnx")
    assert [name for name, _ in signature(path)[1]] == ["output_0", "output_1"]


def test_inner_value_with_a_public_name_makes_way(tmp_path: Path) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.output = nn.Parameter(torch.rand(3))

        def forward(self, val_0: Tensor) -> Tensor:
            return (val_0 @ torch.eye(3)) * self.output

    model = Named()
    path = export_onnx(model, (torch.rand(2, 3),), tmp_path / "m.onnx")
    assert [name for name, _ in signature(path)[1]] == ["output"]
    assert recorded(onnx.load(str(path))) == ["output_1"]
    x = torch.rand(4, 3)
    (found,) = session(path).run(None, {"val_0": x.numpy()})
    np.testing.assert_allclose(found, model(x).detach().numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "numpy_name"),
    [
        ("fp16", "float16"),
        pytest.param("bf16", "bfloat16", marks=pytest.mark.slow),
        pytest.param("fp32", "float32", marks=pytest.mark.slow),
    ],
)
def test_dtype_converts_a_copy(dtype: str, numpy_name: str, half: Path, tmp_path: Path) -> None:
    path = half
    if dtype != "fp16":
        path = export_onnx(ConvNet(), (torch.rand(2, 3, 8, 8),), tmp_path / "m.onnx", dtype=dtype)
    data = read_check(path.with_suffix(".check.npz"))
    assert data.dtype == numpy_name
    assert {str(s.inputs["image"].dtype) for s in data.samples} == {numpy_name}
    assert {str(s.outputs["output"].dtype) for s in data.samples} == {"float64"}
    limit = {"float16": 1e-2, "bfloat16": 1e-1, "float32": 1e-6}[numpy_name]
    assert all(0 < sample.error["output"] < limit for sample in data.samples)


def test_half_precision_runs(half: Path) -> None:
    data = read_check(half.with_suffix(".check.npz"))
    (found,) = session(half).run(None, dict(data.samples[0].inputs))
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, data.samples[0].outputs["output"], atol=5e-3)


def test_floats_of_one_byte_are_not_what_is_computed_in(tmp_path: Path) -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weight", torch.randn(8, 8).to(torch.float8_e4m3fn))
            self.head = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.head(x @ self.weight.to(torch.float32))
            return found

    path = export_onnx(Packed(), (torch.rand(2, 8),), tmp_path / "m.onnx")
    assert read_check(path.with_suffix(".check.npz")).dtype == "float32"


@pytest.mark.slow
def test_program_changes_dtype_without_its_module(tmp_path: Path) -> None:
    program = torch.export.export(ConvNet().eval(), (torch.rand(2, 3, 8, 8),))
    path = export_onnx(program, (), tmp_path / "m.onnx", dtype="fp16")
    assert session(path).get_inputs()[0].type == "tensor(float16)"
    assert read_check(path.with_suffix(".check.npz")).dtype == "float16"


def test_traced_exports_as_its_module(conv: tuple[ConvNet, Path], tmp_path: Path) -> None:
    traced = trace(conv[0], (torch.rand(2, 3, 8, 8),))
    path = export_onnx(traced, (), tmp_path / "m.onnx")
    assert shape_of_graph(path) == shape_of_graph(conv[1])


def test_same_export_same_bytes(tmp_path: Path) -> None:
    model, example = nn.Linear(4, 2), (torch.rand(2, 4),)
    first = export_onnx(model, example, tmp_path / "a.onnx")
    second = export_onnx(model, example, tmp_path / "b.onnx")
    assert first.read_bytes() == second.read_bytes()
    checks = [path.with_suffix(".check.npz").read_bytes() for path in (first, second)]
    assert checks[0] == checks[1]


def test_the_composite_operators_are_those_of_a_users_process() -> None:
    """Also when some are registered later than the first time that they were collected."""
    library = torch.library.Library("opdf_test_export", "DEF")
    for name in ("first", "second"):
        library.define(f"{name}(Tensor x) -> Tensor")
        library.impl(name, lambda x: x + 1, "CompositeImplicitAutograd")
        collected: Any = exported_program._collect_all_valid_cia_ops
        assert collected() == collected.__wrapped__()
        assert getattr(torch.ops.opdf_test_export, name).default in collected()


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export_onnx(Scalars(), (torch.rand(2, 4, 5),), tmp_path / "m.onnx")
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err == ""


@pytest.mark.slow
@pytest.mark.parametrize("opset", [18, 21])
def test_opset_is_what_was_asked_for(opset: int, tmp_path: Path) -> None:
    path = export_onnx(Scalars(), (torch.rand(2, 4, 5),), tmp_path / "m.onnx", opset=opset)
    assert [(e.domain, e.version) for e in onnx.load(str(path)).opset_import] == [("", opset)]


class Fourier(nn.Module):
    """Returns a singular value decomposition, which ONNX does not have."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.svdvals(x)


@pytest.mark.parametrize(
    ("model", "options", "sentence"),
    [
        (Fourier(), {}, r"the operation aten\.\w*svd\w* has no ONNX form"),
        (Scalars(), {"opset": 11}, "opset 11 was asked for, wanted 13 to"),
        (Scalars(), {"dtype": "int4"}, "the dtype is int4, wanted fp32, fp16, bf16 or int8"),
        (Scalars(), {"plan": {}}, "is one file and a plan or extra files were given"),
        (object(), {}, "the model is a object, wanted a torch.nn.Module"),
    ],
    ids=["operator", "opset", "dtype", "plan", "type"],
)
def test_refusals_say_one_sentence_and_write_nothing(
    model: Any, options: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"former")
    with pytest.raises(ExportError, match=sentence) as raised:
        export_onnx(model, (torch.rand(2, 4, 4),), path, **options)
    assert "\n" not in str(raised.value)
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]
    assert path.read_bytes() == b"former"


def test_unfolded_student_is_refused(tmp_path: Path) -> None:
    traced = trace(nn.Linear(64, 64), (torch.rand(2, 64),))
    expanded = expand(traced, plan(traced, cores=3))
    with pytest.raises(ExportError, match=r"still cores, .* fold it first: opdf.fold\(model\)"):
        export_onnx(expanded, (torch.rand(2, 64),), tmp_path / "m.onnx")
    program = torch.export.export(expanded.eval(), (torch.rand(2, 64),))
    with pytest.raises(ExportError, match=r"holds cores \(weight_cores.0\)"):
        export_onnx(program, (), tmp_path / "m.onnx")
    export_onnx(fold(expanded), (torch.rand(2, 64),), tmp_path / "m.onnx")


@pytest.mark.slow
def test_archive_exports_its_eval_program(tmp_path: Path) -> None:
    model = ConvNet()
    programs = dict(trace(model, (torch.rand(2, 3, 8, 8),)).programs)
    path = export_onnx(
        {"model": programs["train"], "eval": programs["eval"]}, (), tmp_path / "m.onnx"
    )
    image = torch.rand(5, 3, 8, 8)
    (found,) = session(path).run(None, {"image": image.numpy()})
    np.testing.assert_allclose(found, model.eval()(image).detach().numpy(), atol=1e-6)


def test_program_without_example_inputs_gets_drawn_ones(tmp_path: Path) -> None:
    program = torch.export.export(ConvNet().eval(), (torch.rand(2, 3, 8, 8),))
    program._example_inputs = None
    path = export_onnx(program, (), tmp_path / "m.onnx")
    # The batch is fixed at 2, and 16 rows are wanted.
    assert len(read_check(path.with_suffix(".check.npz")).samples) == 8


def test_model_that_takes_one_batch_size_only(tmp_path: Path) -> None:
    class One(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(1, 12) * 2

    path = export_onnx(One(), (torch.rand(1, 3, 4),), tmp_path / "m.onnx")
    assert signature(path)[0] == [("x", [1, 3, 4])]


def test_training_graph_is_refused(tmp_path: Path) -> None:
    program = torch.export.export(ConvNet().train(), (torch.rand(2, 3, 8, 8),))
    with pytest.raises(ExportError, match="is a training graph"):
        export_onnx(program, (), tmp_path / "m.onnx")


def test_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="does not exist"):
        export_onnx(Scalars(), (torch.rand(2, 4, 5),), tmp_path / "no" / "m.onnx")


def test_failure_while_writing_keeps_the_former_pair(
    conv: tuple[ConvNet, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"former")
    path.with_suffix(".check.npz").write_bytes(b"former check")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("opdf_compile.io.export.bundling.write_check", full)
    with pytest.raises(ArtefactError, match="No space left"):
        export_onnx(conv[0], (torch.rand(2, 3, 8, 8),), path)
    assert path.read_bytes() == b"former"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m.check.npz", "m.onnx"]


def test_large_weights_go_to_one_file_beside(tmp_path: Path) -> None:
    from contextlib import ExitStack

    model = ConvNet().eval()
    exported = build_export(model, (torch.rand(2, 3, 8, 8),))
    path = tmp_path / "big.onnx"
    with ExitStack() as stack:
        stage(exported.model, path, stack, limit=100)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["big.onnx", "big.onnx.data"]
    onnx.load(str(path))
    image = torch.rand(2, 3, 8, 8)
    (found,) = session(path).run(None, {"image": image.numpy()})
    np.testing.assert_allclose(found, model(image).detach().numpy(), atol=1e-6)
