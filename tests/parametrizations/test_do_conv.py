"""A matrix for each input channel: the paper's sums in loops, its layer, and one step by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn import model_of, random
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.errors import FoldError, PlanError
from opdf_compile.graph import match
from opdf_compile.parametrizations.do_conv import DoConv, DoConvSpec
from opdf_compile.parametrizations.matrix_spec import WeightForm

DO_CONV = DoConv()

# Layer, size of an input.
LAYERS: list[tuple[Callable[[], nn.Module], tuple[int, ...]]] = [
    (lambda: nn.Conv2d(4, 6, 3), (2, 4, 7, 7)),
    (lambda: nn.Conv2d(4, 6, 3, stride=2, groups=2, bias=False), (2, 4, 7, 7)),
    (lambda: nn.Conv2d(6, 6, (3, 2), groups=6), (2, 6, 7, 7)),
    (lambda: nn.Conv2d(6, 12, 3, groups=6), (2, 6, 7, 7)),
    (lambda: nn.Conv1d(4, 6, 5, groups=2), (2, 4, 9)),
    (lambda: nn.Conv3d(2, 4, 2), (2, 2, 4, 4, 4)),
    (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), (2, 4, 5, 5)),
]
of_layers = pytest.mark.parametrize(("make", "size"), LAYERS, ids=[str(f()) for f, _ in LAYERS])


def written_out(kernel: np.ndarray, matrices: np.ndarray, groups: int) -> np.ndarray:
    """W[o, i, m] = sum_s (D + I)[channel, m, s] W'[o, i, s], entry by entry."""
    flat = kernel.reshape(*kernel.shape[:2], -1)
    outputs, inputs, size = flat.shape
    made = np.zeros_like(flat)
    for o, i, m in np.ndindex(outputs, inputs, size):
        channel = (o // (outputs // groups)) * inputs + i
        for s in range(size):
            made[o, i, m] += (matrices[channel, m, s] + (m == s)) * flat[o, i, s]
    return made.reshape(kernel.shape)


@of_layers
def test_the_sums_are_the_papers(make: Callable[[], nn.Module], size: tuple[int, ...]) -> None:
    layer = make()
    (found,) = match(layer).matches
    assert found.groups == layer.groups
    spec = DO_CONV.propose(WeightForm.matched(found)).with_dtype("float64")
    assert spec.groups == layer.groups
    kernel, matrices = (random(*s, seed=k) for k, s in enumerate(DO_CONV.shapes(spec)))
    # In a transposed convolution axis 1 holds the input channels of the one it transposes.
    one = layer.out_channels if "Transpose" in type(layer).__name__ else layer.in_channels
    assert matrices.shape == (one, spec.kernel, spec.kernel)
    wanted = written_out(kernel.numpy(), matrices.numpy(), layer.groups)
    composed = DO_CONV.compose((kernel, matrices), spec)
    np.testing.assert_allclose(composed.numpy(), wanted, rtol=1e-12, atol=1e-12)
    assert composed.is_contiguous()


def test_it_is_a_depthwise_convolution_in_front_of_one() -> None:
    """The paper's picture: D makes M features of a channel's patch, W' sums them all."""
    spec = DoConvSpec((6, 4, 3, 3), "float64")
    kernel, matrices = random(6, 4, 3, 3), random(4, 9, 9, seed=1)
    x = random(2, 4, 7, 7, seed=2)
    patches = nn.functional.unfold(x, 3).reshape(2, 4, 9, -1)
    features = torch.einsum("ims,bimp->bisp", matrices + torch.eye(9).double(), patches)
    wanted = torch.einsum("ois,bisp->bop", kernel.reshape(6, 4, 9), features).reshape(2, 6, 5, 5)
    found = nn.functional.conv2d(x, DO_CONV.compose((kernel, matrices), spec))
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("fill", [None, 0.0, 0.3, 3e4])
def test_the_start_is_the_weight_bit_for_bit(dtype: torch.dtype, fill: float | None) -> None:
    weight = random(6, 4, 3, 3).to(dtype)
    if fill is not None:
        weight.fill_(fill)
    spec = DoConvSpec((6, 4, 3, 3), str(dtype).removeprefix("torch."))
    kernel, matrices = DO_CONV.decompose(weight, spec)
    assert not matrices.any()
    assert torch.equal(DO_CONV.compose((kernel, matrices), spec), weight)
    kernel.fill_(7)
    assert not torch.equal(kernel.to(dtype), weight), "the tensors are copies"


@of_layers
def test_steps_and_fold_by_hand(make: Callable[[], nn.Module], size: tuple[int, ...]) -> None:
    """dL/dW' = (I + D)^T G and dL/dD = sum of G W'^T, of the gradient G of the plain layer."""
    model, plain = model_of(make), model_of(make)
    plan = opdf.plan(model, parametrization="do_conv", min_size=1)
    opt = opdf.Overparam(model, torch.optim.SGD, plan=plan, lr=0.05)
    groups, shape = model[0].groups, tuple(model[0].weight.shape)
    kernel = (
        plain[0]
        .weight.detach()
        .numpy()
        .reshape(groups, -1, shape[1], plain[0].weight[0, 0].numel())
    )
    start, size_of_kernel = kernel.copy(), kernel.shape[-1]
    matrices = np.zeros((groups, shape[1], size_of_kernel, size_of_kernel))
    x = random(*size)
    for _ in range(3):
        for network in (model, plain):
            network.zero_grad()
            network(x).square().mean().backward()
        opt.step()
        gradient = plain[0].weight.grad.numpy().reshape(kernel.shape)
        both = matrices + np.eye(size_of_kernel)
        slopes = (
            np.einsum("gims,goim->gois", both, gradient),
            np.einsum("goim,gois->gims", gradient, kernel),
        )
        kernel, matrices = kernel - 0.05 * slopes[0], matrices - 0.05 * slopes[1]
        weight = written_out(
            kernel.reshape(shape), matrices.reshape(-1, *matrices.shape[2:]), groups
        )
        with torch.no_grad():
            plain[0].weight.copy_(torch.from_numpy(weight))
            if plain[0].bias is not None:
                plain[0].bias -= 0.05 * plain[0].bias.grad
    assert np.abs(matrices).max() > 1e-5
    assert np.abs(kernel - start).max() > 1e-5
    folded = opdf.fold(opt)
    assert isinstance(folded, nn.Sequential)
    np.testing.assert_allclose(folded[0].weight.detach().numpy(), weight, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(folded.eval()(x), plain.eval()(x), rtol=1e-12, atol=1e-12)


@of_layers
def test_the_graph_tells_the_groups_as_the_layer_does(
    make: Callable[[], nn.Module], size: tuple[int, ...]
) -> None:
    model = model_of(make)
    traced = opdf.trace(model, (random(*size),))
    plans = [opdf.plan(m, parametrization="do_conv", min_size=1) for m in (model, traced)]
    assert plans[0].entries == plans[1].entries
    expanded = opdf.expand(traced, plans[1])
    tensors = dict(expanded.named_parameters())
    with torch.no_grad():
        tensors["0.weight_cores.1"].add_(0.1)
    folded, shapes = (
        opdf.fold(expanded),
        [tuple(tensors[f"0.weight_cores.{k}"].shape) for k in (0, 1)],
    )
    assert isinstance(folded, nn.Module)
    torch.testing.assert_close(folded(random(*size)), expanded(random(*size)))
    (entry,) = plans[0].entries
    form = WeightForm(shapes[0], "float64")
    assert DO_CONV.infer(shapes, form) == entry.spec, "shapes tell the groups, without a plan"


def test_an_onnx_student_has_the_groups_of_its_file(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8))
    x = torch.randn(2, 4, 9, 9)
    path = opdf.export_onnx(net.eval(), (x,), tmp_path / "m.onnx")
    student = opdf.load_onnx(path)
    traced = opdf.trace(student, (x,), dynamic=student.dynamic)
    plans = [opdf.plan(m, parametrization="do_conv") for m in (student, traced)]
    assert [entry.modes for entry in plans[0].entries] == ["D 4x9x9", "D 8x9x9"]
    assert plans[0].entries == plans[1].entries
    folded = opdf.export_onnx(opdf.fold(opdf.expand(traced, plans[1])), (x,), tmp_path / "f.onnx")
    assert opdf.verify(folded, path, only="structure,numerics")


class Turned(nn.Module):
    """A convolution whose Parameter holds the outputs of a group in axis 1."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(3, 8, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.kernel.transpose(0, 1), groups=4)


def test_groups_that_do_not_divide_the_first_axis_share_their_matrices() -> None:
    plan = opdf.plan(opdf.trace(Turned(), (torch.randn(2, 12, 7, 7),)), parametrization="do_conv")
    (entry,) = plan.entries
    assert entry.modes == "D 8x9x9"


def test_what_is_no_kernel_is_left_alone_and_named() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 16, 1), nn.Flatten(), nn.Linear(144, 10))
    plan = opdf.plan(model, parametrization="do_conv")
    assert [entry.key for entry in plan.entries] == ["0.weight"]
    assert "D 4x9x9" in str(plan)
    reason = "is no convolution kernel of more than one element, as do_conv needs"
    assert [(row.key, row.reason) for row in plan.refusals] == [
        ("1.weight", reason),
        ("3.weight", reason),
    ]
    with pytest.raises(PlanError, match=f"then: weight {reason}"):
        opdf.plan(nn.Linear(30, 48), parametrization="do_conv")
    with pytest.raises(PlanError, match=r"found a weight of shape \[48, 30\]; leave it plain"):
        DO_CONV.propose(WeightForm((48, 30)))
    with pytest.raises(PlanError, match="do_conv has 2 tensors, found cores=3; leave cores out"):
        opdf.plan(model, parametrization="do_conv", cores=3)


def test_decay_is_that_of_the_kernel_and_leaves_the_matrices() -> None:
    model = model_of(LAYERS[0][0])
    plan = opdf.plan(model, parametrization="do_conv")
    opt = opdf.Overparam(
        model, torch.optim.AdamW, plan=plan, lr=0.1, weight_decay=0.3, betas=(0.0, 0.0)
    )
    model(random(2, 4, 7, 7)).square().mean().backward()
    opt.step()
    cores = opt.program.cores("0.weight")
    assert bool(cores[1].any())
    before = [core.detach().clone() for core in cores]
    weight = model[0].weight.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    opt.step()
    torch.testing.assert_close(cores[0].detach(), before[0] * 0.97, rtol=1e-12, atol=1e-13)
    assert torch.equal(cores[1].detach(), before[1])
    torch.testing.assert_close(model[0].weight.detach(), weight * 0.97, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("shapes", "sentence"),
    [
        ([[6, 4, 3, 3], [5, 9, 9]], r"were found, do_conv has \[\[6, 4, 3, 3\], \[4, 9, 9\]\]"),
        ([[6, 4, 3, 3], [3, 9, 9]], "groups is 0"),
        ([[6, 4, 3, 3], [16, 9, 9]], "groups is 4, wanted a divisor of the first axis"),
        ([[6, 4, 3, 3], [9, 9]], "a kernel and a stack of matrices are wanted"),
    ],
)
def test_only_its_own_shapes_are_inferred(shapes: list[list[int]], sentence: str) -> None:
    with pytest.raises(FoldError, match=sentence):
        DO_CONV.infer(shapes, WeightForm((6, 4, 3, 3)))
