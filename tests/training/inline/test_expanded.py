"""Expanded: it computes what the student computes, and behaves as any module does."""

from __future__ import annotations

import copy
import io
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from quick import quick
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.errors import InputError, PlanError
from opdf_compile.graph.sharing import deep_copy
from opdf_compile.training.inline.calling import Convention
from opdf_compile.training.inline.expanded import Expanded


def grow(model: nn.Module, *args: Any, **options: Any) -> Expanded:
    return grown(opdf.trace(model, args), **options)


def grown(traced: opdf.Traced, **options: Any) -> Expanded:
    return opdf.expand(traced, opdf.plan(traced, **({"min_size": 1, "cores": 3} | options)))


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> None:
    assert (a - b).abs().max() <= tolerance * b.abs().max()


@pytest.mark.parametrize("cores", quick([2, 3, 5], {3}))
@pytest.mark.parametrize(
    ("model", "size"),
    [
        (nn.Linear(12, 18), (4, 12)),
        (nn.Conv1d(6, 8, 3, padding="same"), (2, 6, 9)),
        (nn.Conv2d(8, 8, 3, groups=8), (2, 8, 6, 6)),
        (nn.Conv3d(4, 6, (1, 3, 1)), (2, 4, 4, 4, 4)),
        (nn.ConvTranspose2d(6, 4, 2, stride=2, groups=2), (2, 6, 4, 4)),
        pytest.param(
            *(nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True), (2, 5, 16)),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["linear", "conv1d", "depthwise", "conv3d", "transposed", "transformer"],
)
def test_outputs_equal_the_students_in_both_phases(
    model: nn.Module, size: tuple[int, ...], cores: int
) -> None:
    expanded = grow(model, torch.randn(size), cores=cores)
    x = torch.randn(size[0] + 3, *size[1:])
    for mode in (True, False):
        close(expanded.train(mode)(x), model.train(mode)(x))


def test_gradients_are_those_of_the_chain() -> None:
    model = nn.Linear(12, 18)
    expanded = grow(model, torch.randn(4, 12))
    x = torch.randn(4, 12)
    cores = [core.detach().double().requires_grad_() for core in expanded.cores("weight")]
    weight = torch.einsum("aijb,bklc,cmnd->ikmjln", *cores).reshape(18, 12)
    F.linear(x.double(), weight, model.bias.double()).square().sum().backward()
    expanded(x).square().sum().backward()
    for ours, oracle in zip(expanded.cores("weight"), cores, strict=True):
        np.testing.assert_allclose(
            ours.grad.numpy(), oracle.grad.numpy(), rtol=1e-4, atol=1e-4 * oracle.grad.abs().max()
        )


def test_a_zero_weight_trains() -> None:
    model = nn.Linear(8, 8)
    nn.init.zeros_(model.weight)
    expanded = grow(model, torch.randn(4, 8))
    expanded(torch.randn(4, 8)).square().sum().backward()
    assert all(torch.isfinite(core.grad).all() for core in expanded.cores("weight"))
    assert any(core.grad.abs().max() > 0 for core in expanded.cores("weight"))


def test_state_dict_keys_and_what_is_trained(student: nn.Module, graphs: opdf.Traced) -> None:
    expanded = grown(graphs)
    planned = {entry.key for entry in expanded.plan.entries}
    assert planned == {"mix.weight", "shared.weight"}
    state = set(expanded.state_dict())
    kept = {key for key in student.state_dict() if key not in planned}
    assert state == kept | {f"{key}_cores.{i}" for key in planned for i in range(3)}
    trained = {name: p.requires_grad for name, p in expanded.named_parameters()}
    assert {name for name, flag in trained.items() if not flag} == {"frozen.weight", "frozen.bias"}
    assert expanded.tree.get_parameter("head.weight") is expanded.tree.get_parameter("table.weight")


def test_expand_owns_its_tensors(student: nn.Module, ids: Tensor) -> None:
    before = copy.deepcopy(student.state_dict())
    expanded = grow(student, ids)
    optimizer = torch.optim.SGD(expanded.parameters(), lr=0.1)
    expanded.train()(ids).square().sum().backward()
    optimizer.step()
    for name, tensor in student.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(p.grad is None for p in student.parameters())


def test_dropout_and_frozen_norm(graphs: opdf.Traced, ids: Tensor) -> None:
    expanded = grown(graphs)
    assert expanded.training
    frozen = expanded.tree.get_buffer("frozen_norm.running_mean").clone()
    assert not torch.equal(expanded(ids), expanded(ids))
    assert torch.equal(expanded.tree.get_buffer("frozen_norm.running_mean"), frozen)
    assert expanded.tree.get_buffer("norm.num_batches_tracked") == 2
    expanded.eval()
    assert torch.equal(expanded(ids), expanded(ids))
    assert expanded.tree.get_buffer("norm.num_batches_tracked") == 2


def test_the_flag_is_that_of_the_student() -> None:
    assert not grow(nn.Linear(8, 8).eval(), torch.randn(2, 8)).training


def test_a_tied_embedding_reads_the_composed_weight(
    student: nn.Module, graphs: opdf.Traced, ids: Tensor
) -> None:
    expanded = grown(graphs, include=["*"]).eval()
    assert "table.weight" not in expanded.state_dict()
    close(expanded(ids), student.eval()(ids))
    with torch.no_grad():
        for core in expanded.cores("table.weight"):
            core.mul_(1.1)
        student.table.weight.copy_(expanded.weight("table.weight"))
    close(expanded(ids), student(ids))


class Names(nn.Module):
    """Layers called what Expanded's own attributes are called."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("plan", "source", "phase", "example", "tree", "convention"):
            setattr(self, name, nn.Linear(8, 8))
        self.weight = nn.Parameter(torch.randn(8, 8))
        self.register_buffer("cores", torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        x = x @ self.weight + self.cores
        for layer in (self.plan, self.source, self.phase, self.example, self.tree, self.convention):
            x = layer(x)
        return x


def test_a_students_names_do_not_clash_with_ours() -> None:
    model = Names()
    expanded = grow(model, torch.randn(2, 8), exclude=["weight"])
    x = torch.randn(5, 8)
    close(expanded(x), model(x))
    assert {"weight", "cores", "plan.weight_cores.0"} <= set(expanded.state_dict())
    close(copy.deepcopy(expanded)(x), model(x))
    close(opdf.fold(expanded)(x), model(x))


def test_constants_differ_by_phase() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            factor = torch.tensor(2.0) if self.training else torch.tensor([3.0])
            return self.linear(x) * factor

    model = Scaled()
    expanded = grow(model, torch.randn(2, 8))
    x = torch.randn(3, 8)
    for mode in (True, False):
        close(expanded.train(mode)(x), model.train(mode)(x))
    assert list(opdf.fold(expanded).state_dict()) == ["linear.weight", "linear.bias"]


def test_an_auxiliary_head_of_the_train_phase() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.side = nn.Linear(8, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Any:
            x = self.body(x)
            return {"main": x, "side": self.side(x)} if self.training else x

    model = Auxiliary()
    expanded = grow(model, torch.randn(2, 8))
    x = torch.randn(3, 8)
    trained = expanded.train()(x)
    close(trained["side"], model.train()(x)["side"])
    trained["side"].sum().backward()
    assert expanded.cores("side.weight")[0].grad is not None
    close(expanded.eval()(x), model.eval()(x))


def test_nested_graphs_run_and_stop_gradients() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fixed, self.free = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = self.fixed(x)
            return self.free(x)

    model = Half()
    expanded = grow(model, torch.randn(2, 8))
    x = torch.randn(3, 8)
    close(copy.deepcopy(expanded)(x), model(x))
    expanded(x).sum().backward()
    assert all(core.grad is None for core in expanded.cores("fixed.weight"))
    assert all(core.grad is not None for core in expanded.cores("free.weight"))


# dtypes and devices


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_weights_of_other_dtypes(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)).to(dtype)
    x = torch.randn(3, 16, dtype=dtype)
    expanded = grow(model, x)
    cores = {core.dtype for core in expanded.cores("0.weight")}
    assert cores == {torch.float64 if dtype is torch.float64 else torch.float32}
    assert expanded(x).dtype is dtype
    close(expanded(x).double(), model(x).double(), 1e-12 if dtype is torch.float64 else 1e-6)
    expanded(x).sum().backward()
    assert expanded.cores("0.weight")[0].grad.dtype in cores


class Casting(nn.Module):
    """torch.export puts an assertion on the dtype before the cast."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)
        self.nested = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.nested(x) * x.float().mean().to(x.dtype)
        return self.linear(x).float().sum(-1)


@pytest.mark.parametrize("move", ["half", "bfloat16", "double"])
def test_a_change_of_dtype_spares_the_cores(move: str) -> None:
    model = Casting()
    expanded = grow(model, torch.randn(2, 16))
    assert getattr(expanded, move)() is expanded
    dtype = expanded.tree.get_parameter("linear.bias").dtype
    wanted = torch.float64 if move == "double" else torch.float32
    assert {core.dtype for core in expanded.cores("linear.weight")} == {wanted}
    x = torch.randn(5, 16, dtype=dtype)
    model.to(dtype)
    close(expanded(x).double(), model(x).double(), 2e-2 if move != "double" else 1e-6)
    assert expanded.weight("linear.weight").dtype is wanted


def test_back_from_half_precision_loses_nothing_of_the_weights() -> None:
    model = nn.Linear(16, 16, bias=False)
    expanded = grow(model, torch.randn(2, 16))
    x = torch.randn(5, 16)
    wanted = expanded(x)
    assert torch.equal(expanded.half().float()(x), wanted)


def test_to_meta_moves_everything() -> None:
    expanded = grow(nn.Linear(16, 16), torch.randn(2, 16)).to("meta")
    assert expanded(torch.randn(2, 16, device="meta")).device.type == "meta"


@pytest.mark.gpu
def test_cuda(student: nn.Module, ids: Tensor) -> None:
    expanded = grow(student, ids).eval()
    wanted = expanded(ids)
    # torch lets cuDNN convolve in TF32 unless told otherwise, which is good to 1e-3 only.
    with torch.backends.cudnn.flags(allow_tf32=False):
        moved = expanded.cuda()(ids.cuda()).cpu()
    close(moved, wanted, 1e-5)
    assert next(opdf.fold(expanded).parameters()).is_cuda


# copies, files, wrappers


def test_deepcopy_is_independent(graphs: opdf.Traced, ids: Tensor) -> None:
    expanded = grown(graphs).eval()
    twin = copy.deepcopy(expanded)
    wanted = expanded(ids)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1.0)
    assert torch.equal(expanded(ids), wanted)
    assert not torch.equal(twin(ids), wanted)
    assert twin.tree.get_parameter("head.weight") is twin.tree.get_parameter("table.weight")
    assert set(map(id, twin.tree.parameters())) == set(map(id, twin.parameters()))


def test_state_dict_round_trip(graphs: opdf.Traced, ids: Tensor) -> None:
    expanded, other = grown(graphs).eval(), grown(graphs).eval()
    with torch.no_grad():
        for parameter in expanded.parameters():
            parameter.add_(0.01)
    assert not torch.equal(other(ids), expanded(ids))
    missing = other.load_state_dict(expanded.state_dict())
    assert not missing.missing_keys
    assert torch.equal(other(ids), expanded(ids))


def test_pickling_is_refused_with_the_remedy() -> None:
    expanded = grow(nn.Linear(8, 8), torch.randn(2, 8))
    with pytest.raises(InputError, match=r"an Expanded cannot be pickled, .* save its state_dict"):
        torch.save(expanded, io.BytesIO())


def test_torch_compile(student: nn.Module, ids: Tensor) -> None:
    # The eager backend runs what dynamo captured without the minutes of a C++ compiler.
    expanded = grow(student, ids)
    compiled = torch.compile(expanded, backend="eager", fullgraph=True)
    expanded.eval()
    close(compiled(ids), expanded(ids))
    close(compiled(torch.cat([ids, ids])), expanded(torch.cat([ids, ids])))
    expanded.train()
    compiled(ids).sum().backward()
    assert expanded.cores("shared.weight")[0].grad is not None


def test_functional_call() -> None:
    model = nn.Linear(8, 8)
    expanded = grow(model, torch.randn(2, 8))
    doubled = {name: 2 * p for name, p in expanded.named_parameters() if name == "bias"}
    x = torch.randn(3, 8)
    close(torch.func.functional_call(expanded, doubled, (x,)), model(x) + model.bias)


def test_repr_tells_the_plan() -> None:
    expanded = grow(nn.Linear(16, 16), torch.randn(2, 16))
    assert "1 weights: 256 parameters deployed" in repr(expanded)
    with pytest.raises(KeyError):
        expanded.cores("bias")


# calls


class Called(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, *, flip: bool = False, gain: float = 1.0
    ) -> Tensor:
        y = self.linear(x) * gain
        y = y if mask is None else y * mask
        return -y if flip else y


def called(args: Any, kwargs: dict[str, Any] | None = None) -> Expanded:
    traced = opdf.trace(Called(), args, kwargs)
    return opdf.expand(traced, opdf.plan(traced, cores=3, min_size=1))


X = torch.randn(3, 8)


def test_positions_and_keywords_are_the_same_call() -> None:
    for traced in ((X, X), {"x": X, "mask": X}):
        expanded = called(traced)
        wanted = expanded(X, X)
        for args, kwargs in (((X,), {"mask": X}), ((), {"mask": X, "x": X})):
            assert torch.equal(expanded(*args, **kwargs), wanted)


def test_defaults_stand_in_for_what_was_traced_and_left_out() -> None:
    expanded = called((X, None), {"flip": False, "gain": 1.0})
    assert torch.equal(expanded(X), expanded(X, None, flip=False, gain=1.0))
    assert torch.equal(expanded(X, mask=None), expanded(X))


CALLS = [
    (
        (X, X),
        {},
        "the input 'mask' is a tensor, the graph was traced with None; pass that",
    ),
    ((X,), {"flip": True}, "the input 'flip' is True, the graph was traced with False; pass that"),
    ((X,), {"gain": 2.0}, "the input 'gain' is 2.0, the graph was traced with 1.0; pass that"),
    ((None,), {}, "the input 'x' is None, the graph was traced with a tensor; pass"),
    ((torch.randn(3, 7),), {}, r"'x' has shape \(3, 7\), the graph holds axis 1 at 8; pass that"),
    ((torch.randn(3),), {}, r"'x' has shape \(3,\), the graph holds axis 1 at 8"),
    (([X],), {}, "(?s)the inputs have the structure .*, the graph was traced with"),
]


@pytest.fixture(scope="module")
def answering() -> Expanded:
    """Of which no call that it refuses changes anything."""
    return called((X, None), {"flip": False, "gain": 1.0})


@pytest.mark.parametrize(("args", "kwargs", "sentence"), CALLS, ids=[row[2][:20] for row in CALLS])
def test_calls_that_the_graph_cannot_answer(
    answering: Expanded, args: Any, kwargs: Any, sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        answering(*args, **kwargs)


def test_an_input_that_was_not_traced() -> None:
    with pytest.raises(
        InputError, match="the call gives x, mask, the graph was traced with x; pass"
    ):
        called((X,))(X, X)
    with pytest.raises(InputError, match="unexpected|got an unexpected keyword argument|fit"):
        called((X,))(X, nothing=1)


def test_a_program_is_called_by_the_names_of_its_inputs() -> None:
    model = Called()
    program = torch.export.export(model, (X,), {"mask": X}, strict=False)
    traced = opdf.trace(program)
    expanded = opdf.expand(traced, opdf.plan(traced, cores=3, min_size=1))
    close(expanded(X, mask=X), model(X, X))
    close(expanded(X, X), model(X, X))
    assert isinstance(expanded.convention, Convention)
    with pytest.raises(InputError, match="the call gives mask, the graph was traced with x, mask"):
        expanded(mask=X)


# errors of expand


def test_a_plan_for_another_model() -> None:
    traced = opdf.trace(nn.Linear(8, 8), (X,))
    with pytest.raises(PlanError, match=r"gives 'weight' shape \[9, 8\], the model has \[8, 8\]"):
        opdf.expand(traced, opdf.plan(nn.Linear(8, 9)))


def test_a_weight_that_is_not_finite() -> None:
    model = nn.Linear(8, 8)
    model.weight.data[0, 0] = float("nan")
    with pytest.raises(InputError, match=r"'weight' cannot be factorised: .*exclude=\['weight'\]"):
        grow(model, X)


def test_progress_is_told_before_each_weight() -> None:
    traced = opdf.trace(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), (X,))
    told: list[tuple[str, int, int]] = []
    opdf.expand(traced, opdf.plan(traced, cores=3), progress=lambda *step: told.append(step))
    assert told == [("0.weight", 0, 2), ("1.weight", 1, 2)]


@pytest.mark.filterwarnings("ignore")
def test_a_student_with_the_old_weight_norm() -> None:
    model = nn.Sequential(nn.utils.weight_norm(nn.Linear(8, 8)), nn.Linear(8, 8))
    model(X)
    wanted = deep_copy(model)(X)
    expanded = grow(model, X)
    close(expanded(X), wanted)
    close(opdf.fold(expanded)(X), wanted)
    close(model(X), wanted)


def test_a_weight_with_a_hook_on_its_gradient_is_refused() -> None:
    student, x = nn.Linear(8, 8), torch.randn(3, 8)
    traced = opdf.trace(student, (x,))
    plan = opdf.plan(traced, cores=3)
    hook = student.weight.register_hook(lambda grad: 7 * grad)
    with pytest.raises(PlanError, match="'weight' has a hook on its gradient, which its cores"):
        opdf.expand(traced, plan)
    hook.remove()
    student.bias.register_hook(lambda grad: grad)
    opdf.expand(traced, plan)
