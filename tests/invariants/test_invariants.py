"""The invariants of the design, each under its number, each with a check that can fail.

Details live with their area; here every promise is tested once from the public face.
"""

from __future__ import annotations

import contextlib
import copy
import io
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from quick import covering
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.errors import ArtefactError, DeviceError, FoldError, InputError
from opdf_compile.io.models.program_archive import read_programs
from opdf_compile.io.saved.expanded_file import fold_file, save_expanded
from opdf_compile.training.inline.expanded import Expanded


def grow(model: nn.Module, *args: Any, **options: Any) -> Expanded:
    traced = opdf.trace(model, args)
    return opdf.expand(traced, opdf.plan(traced, **({"min_size": 1, "cores": 3} | options)))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def low_rank() -> Tensor:
    return torch.randn(24, 2, generator=generator()) @ torch.randn(2, 36, generator=generator())


WEIGHTS: dict[str, Callable[[], Tensor]] = {
    "random": lambda: torch.randn(24, 36, generator=generator()),
    "zero": lambda: torch.zeros(24, 36),
    "constant": lambda: torch.full((24, 36), 0.3),
    "identity": lambda: torch.eye(36),
    "rank deficient": low_rank,
    "one entry": lambda: torch.zeros(24, 36).index_put_(
        (torch.tensor(3), torch.tensor(5)), torch.tensor(7.0)
    ),
    "tiny": lambda: torch.randn(24, 36, generator=generator()) * 1e-30,
    "huge": lambda: torch.randn(24, 36, generator=generator()) * 1e30,
    "prime sizes": lambda: torch.randn(23, 37, generator=generator()),
    "one row": lambda: torch.randn(2, 36, generator=generator()),
}


def linear(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False).to(weight.dtype)
    layer.weight.data.copy_(weight)
    return layer


def require_lossless(cores: tuple[Tensor, ...], weight: Tensor) -> None:
    """||einsum(cores) - W||_F <= 1e-6 ||W||_F in float64, and never NaN."""
    chain = np.ones((1, 1, 1))  # (rows, columns, bond)
    for core in cores:
        values = core.detach().double().numpy()
        chain = np.einsum("rcl,lijb->ricjb", chain, values)
        rows, i, columns, j, bond = chain.shape
        chain = chain.reshape(rows * i, columns * j, bond)
    error = np.linalg.norm(chain[..., 0] - weight.double().numpy())
    assert np.isfinite(error)
    assert error <= 1e-6 * np.linalg.norm(weight.double().numpy())


@pytest.mark.parametrize(("name", "cores"), covering(WEIGHTS, [2, 3, 5]))
def test_invariant_1_expand_is_lossless(name: str, cores: int) -> None:
    weight = WEIGHTS[name]()
    expanded = grow(linear(weight), torch.randn(2, weight.shape[1]), cores=cores)
    require_lossless(expanded.cores("weight"), weight)
    if name not in ("zero", "tiny"):
        wrong = weight.clone()
        wrong[wrong != 0] *= 1.01
        with pytest.raises(AssertionError):
            require_lossless(expanded.cores("weight"), wrong)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_invariant_1_cores_of_half_weights_are_float32(dtype: torch.dtype) -> None:
    weight = WEIGHTS["random"]().to(dtype)
    expanded = grow(linear(weight), torch.randn(2, 36, dtype=dtype))
    require_lossless(expanded.cores("weight"), weight)
    for move in (lambda m: m.half(), lambda m: m.bfloat16(), lambda m: m.to(dtype)):
        assert {core.dtype for core in move(expanded).cores("weight")} == {torch.float32}
    require_lossless(expanded.cores("weight"), weight)
    for phase in ("train", "eval"):
        casts = [
            node
            for node in expanded.phase(phase).graph.nodes
            if node.target is torch.ops.aten.to.dtype
        ]
        assert len(casts) == 1, "compose ends in one cast"


def test_invariant_2_fold_is_exact() -> None:
    model = nn.Sequential(nn.Linear(24, 36), nn.LayerNorm(36), nn.Linear(36, 8))
    with torch.no_grad():
        model[1].weight.normal_()
    expanded = grow(model, torch.randn(2, 24), exclude=["2.weight"])
    folded = opdf.fold(expanded)
    difference = (folded[0].weight - model[0].weight).abs()
    assert torch.all(difference <= 4e-7 * model[0].weight.abs().max())
    for name in ("0.bias", "1.weight", "1.bias", "2.weight", "2.bias"):
        assert torch.equal(folded.state_dict()[name], model.state_dict()[name]), name
    # The weight is the float64 product rounded once, not a float32 product.
    cores = expanded.cores("0.weight")
    with torch.no_grad():
        for core in cores:
            core.add_(torch.randn_like(core))
    values = [core.detach().double().numpy() for core in cores]
    oracle = np.einsum("aijb,bklc,cmnd->ikmjln", *values).reshape(36, 24)
    found = opdf.fold(expanded)[0].weight.detach().numpy()
    assert np.mean(found == oracle.astype(np.float32)) > 0.999
    rough = np.einsum("aijb,bklc,cmnd->ikmjln", *[v.astype(np.float32) for v in values])
    assert np.mean(rough.reshape(36, 24) == oracle.astype(np.float32)) < 0.999


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 16)
        self.norm = nn.BatchNorm1d(16)
        self.frozen_norm = nn.BatchNorm1d(16)
        self.body = nn.Linear(16, 16)
        self.fixed = nn.Linear(16, 16).requires_grad_(False)
        self.head = nn.Linear(16, 40, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.frozen_norm(self.norm(self.table(ids).mean(1)))
        return self.head(self.fixed(self.body(hidden)))


def test_invariant_3_the_student_comes_back_whole(tmp_path: Path) -> None:
    ids = torch.randint(0, 40, (6, 3))
    model = Whole().train()
    model.frozen_norm.eval()
    flags = {name: module.training for name, module in model.named_modules()}
    expanded = grow(model, ids, include=["*"])
    assert {name: module.training for name, module in model.named_modules()} == flags
    expanded(ids).square().mean().backward()
    torch.optim.SGD(expanded.parameters(), lr=0.1).step()
    folded = opdf.fold(expanded)
    assert type(folded) is Whole
    state = folded.state_dict()
    for name, tensor in model.state_dict().items():
        assert (state[name].shape, state[name].dtype) == (tensor.shape, tensor.dtype)
    assert list(state) == list(model.state_dict())
    assert folded.head.weight is folded.table.weight
    assert [p.requires_grad for p in folded.parameters()] == [
        p.requires_grad for p in model.parameters()
    ]
    assert {name: module.training for name, module in folded.named_modules()} == flags
    assert (folded.norm.num_batches_tracked, folded.frozen_norm.num_batches_tracked) == (1, 0)
    # Every reader in every phase has the composed weight, the tied embedding too.
    torch.testing.assert_close(folded.eval()(ids), expanded.eval()(ids))
    # Ties survive a file, where they are two tensors on one storage.
    save_expanded(expanded, tmp_path / "expanded.pt2")
    from_file = fold_file(tmp_path / "expanded.pt2")
    from_file.save(tmp_path / "student.pt2")
    assert set(from_file.state) == set(state)
    for name, tensor in from_file.state.items():
        assert torch.equal(tensor, state[name]), name
    plain = opdf.trace(model, (ids,)).programs
    from opdf_compile.io.models.program_archive import write_programs

    write_programs(tmp_path / "plain.pt2", {"model": plain["train"], "eval": plain["eval"]})
    reread = opdf.trace(read_programs(tmp_path / "plain.pt2").programs)
    graphs = reread.graphs.values()
    tied = {id(g.get_parameter(n)) for g in graphs for n in ("table.weight", "head.weight")}
    assert len(tied) == 1


class Mixed(nn.Module):
    """Weights of many kinds: what is not a match has a sentence."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)
        self.convolution = nn.Conv1d(1, 4, 3, groups=1)
        self.transposed = nn.ConvTranspose1d(4, 2, 3)
        self.recurrent = nn.GRU(32, 16, batch_first=True)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(16, 16))
        self.frozen = nn.Linear(16, 16).requires_grad_(False)
        self.idle = nn.Linear(16, 16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.transposed(self.convolution(self.linear(x)[:, None])).flatten(1)
        x = self.recurrent(x[:, None])[0]
        with torch.no_grad():
            x = self.frozen(self.normed(x))
        return self.attention(x, x, x)[0]


def test_invariant_4_no_silent_skip() -> None:
    model = Mixed()
    report = opdf.match(opdf.trace(model, (torch.randn(2, 16),)))
    rows = [*(row.key for row in report.matches), *(row.key for row in report.refusals)]
    weights = {name for name, p in model.named_parameters() if p.ndim > 1}
    assert sorted(rows) == sorted(weights), "each once"
    assert {row.key for row in report.matches} == {
        "linear.weight",
        "convolution.weight",
        "transposed.weight",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "normed.parametrizations.weight.original1",
    }
    assert all(len(row.reason.split()) > 3 for row in report.refusals)
    made = opdf.plan(model, exclude=["convolution.*"])
    planned = {e.key for e in made.entries} | {r.key for r in made.refusals}
    assert {"linear.weight", "convolution.weight", "frozen.weight"} <= planned


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 24), nn.Linear(24, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    untouched = Net().eval()
    folded = opdf.fold(grow(untouched, torch.randn(2, 16))).eval()
    folder = tmp_path_factory.mktemp("parity") / "out"
    opdf.export_onnx(folded, (torch.randn(2, 16),), f"{folder}/", reference=untouched)
    return folder


@pytest.mark.skipif(torch.cuda.is_available(), reason="the refusal needs a machine without CUDA")
def test_invariant_5_no_silent_device_fallback(bundle: Path) -> None:
    with pytest.raises(DeviceError, match="cuda|CUDA"):
        opdf.verify(bundle, device="cuda", only="numerics")


def test_invariant_5_auto_says_what_it_chose(bundle: Path) -> None:
    report = opdf.verify(bundle, device="auto", only="structure,numerics").to_json()
    said = str(report["environment"]).lower()
    assert ("cuda" if torch.cuda.is_available() else "cpu") in said


def rewrite(bundle: Path, target: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    """The student of a bundle, changed, with its check data beside it."""
    model = onnx.load(bundle / "student.onnx")
    change(model)
    onnx.save(model, target / "student.onnx")
    (target / "student.check.npz").write_bytes((bundle / "student.check.npz").read_bytes())
    return target / "student.onnx"


def one_weight_off(model: onnx.ModelProto) -> None:
    weight = next(i for i in model.graph.initializer if len(i.dims) == 2)
    values = numpy_helper.to_array(weight).copy()
    values.flat[np.abs(values).argmax()] *= 1.01
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))


def one_node_more(model: onnx.ModelProto) -> None:
    node = model.graph.node[-1]
    name = node.output[0]
    node.output[0] = "before"
    model.graph.node.append(helper.make_node("Identity", ["before"], [name]))


def one_attribute_changed(model: onnx.ModelProto) -> None:
    node = next(n for n in model.graph.node if n.op_type == "Gemm")
    alpha = [a for a in node.attribute if a.name == "alpha"]
    for attribute in alpha:
        node.attribute.remove(attribute)
    node.attribute.append(helper.make_attribute("alpha", 0.5))


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (one_weight_off, "numerics"),
        (one_node_more, "structure"),
        (one_attribute_changed, "structure"),
    ],
)
def test_invariant_6_a_checker_can_fail(
    bundle: Path, tmp_path: Path, change: Callable[[onnx.ModelProto], None], part: str
) -> None:
    assert opdf.verify(bundle, device="cpu", only=part), "the control: what was exported passes"
    candidate = rewrite(bundle, tmp_path, change)
    report = opdf.verify(candidate, bundle / "reference/reference.onnx", device="cpu", only=part)
    assert report.to_json()[part]["verdict"] == "fail"
    assert not report


DIGEST = """
import hashlib, torch, opdf_compile as opdf
torch.set_num_threads(1)
model = torch.nn.Linear(36, 24)
model.weight.data.copy_(torch.randn(24, 36, generator=torch.Generator().manual_seed(0)))
traced = opdf.trace(model, (torch.zeros(2, 36),))
cores = opdf.expand(traced, opdf.plan(traced, cores=3)).cores("weight")
print(hashlib.sha256(b"".join(c.detach().numpy().tobytes() for c in cores)).hexdigest())
"""


def test_invariant_7_decompositions_are_deterministic() -> None:
    for name, make in WEIGHTS.items():
        traced = opdf.trace(linear(make()), (torch.randn(2, make().shape[1]),))
        plan = opdf.plan(traced, cores=3, min_size=1)
        first = opdf.expand(traced, plan).cores("weight")
        torch.manual_seed(1234)
        torch.randn(100)
        second = opdf.expand(traced, plan).cores("weight")
        for ours, again in zip(first, second, strict=True):
            assert torch.equal(ours, again), name
    other = subprocess.run(
        [sys.executable, "-c", DIGEST], capture_output=True, text=True, check=True
    ).stdout
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(DIGEST, {})
    assert printed.getvalue() == other != ""


def test_invariant_8_nothing_is_lost_or_overwritten_unasked(tmp_path: Path) -> None:
    ids = torch.randint(0, 40, (6, 3))
    model = Whole().train()
    model.frozen_norm.eval()
    objects = [(name, id(p)) for name, p in model.named_parameters()]
    before = copy.deepcopy(model.state_dict())
    flags = [module.training for module in model.modules()]
    traced = opdf.trace(model, (ids,))
    opdf.match(traced)
    expanded = opdf.expand(traced, opdf.plan(traced, cores=3))
    expanded(ids).sum().backward()
    torch.optim.SGD(expanded.parameters(), lr=0.1).step()
    cores = copy.deepcopy(expanded.state_dict())
    folded = opdf.fold(expanded)
    assert folded is not model
    assert folded is not opdf.fold(expanded)
    assert [(name, id(p)) for name, p in model.named_parameters()] == objects
    assert [module.training for module in model.modules()] == flags
    assert all(p.grad is None for p in model.parameters())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    for name, tensor in expanded.state_dict().items():
        assert torch.equal(tensor, cores[name]), name
    # A command that fails leaves the former file, and no other.
    target = tmp_path / "student.safetensors"
    target.write_bytes(b"former")
    save_expanded(expanded, tmp_path / "expanded.safetensors")
    expanded.cores("body.weight")[0].data.fill_(float("nan"))
    with pytest.raises(FoldError):
        opdf.fold(expanded)
    with pytest.raises(ArtefactError):
        fold_file(tmp_path / "expanded.safetensors").save(tmp_path / "no" / "folder.safetensors")
    assert target.read_bytes() == b"former"
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "expanded.safetensors",
        "student.safetensors",
    ]


def test_invariant_9_a_model_file_is_data(tmp_path: Path) -> None:
    """A pickle that names anything but tensors is refused, whatever the name would do."""
    stranger = Counter("harmless")
    expanded = grow(nn.Linear(16, 16), torch.randn(2, 16))
    good, bad = tmp_path / "good.pt2", tmp_path / "bad.pt2"
    save_expanded(expanded, good)
    stream = io.BytesIO()
    torch.save(((stranger,), {}), stream)
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(bad, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            target.writestr(name, stream.getvalue() if "sample_inputs" in name else data)
    fold_file(good)
    with pytest.raises(ArtefactError, match="--trust-pickle"):
        fold_file(bad)
    with pytest.raises(ArtefactError, match="--trust-pickle"):
        fold_file(good, weights=bad)
    torch.save(stranger, tmp_path / "weights.safetensors")
    torch.save(stranger, tmp_path / "expanded.pt2")
    for name in ("weights.safetensors", "expanded.pt2"):
        with pytest.raises(ArtefactError):
            fold_file(tmp_path / name)
    # A pickle of our own module would be code too: there is none.
    with pytest.raises(InputError, match="cannot be pickled"):
        torch.save(expanded, io.BytesIO())
