"""Six branches of a kernel: their sums in loops, their layers in front of each other, by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from drawn import model_of, random
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.errors import FoldError, InputError, PlanError
from opdf_compile.graph import match
from opdf_compile.parametrizations.matrix_spec import WeightForm
from opdf_compile.parametrizations.orepa import STARTS, Orepa, OrepaSpec
from opdf_compile.parametrizations.registry import registered, registered_names

OREPA = Orepa()

# Layer, size of an input.
LAYERS: list[tuple[Callable[[], nn.Module], tuple[int, ...]]] = [
    (lambda: nn.Conv2d(4, 6, 3), (2, 4, 7, 7)),
    (lambda: nn.Conv2d(4, 6, 3, stride=2, groups=2, bias=False), (2, 4, 7, 7)),
    (lambda: nn.Conv2d(6, 6, (3, 2), groups=6), (2, 6, 7, 7)),
    (lambda: nn.Conv2d(10, 15, 3, groups=5), (2, 10, 7, 7)),
    (lambda: nn.Conv1d(4, 6, 5, groups=2), (2, 4, 9)),
    (lambda: nn.Conv3d(2, 7, 2), (2, 2, 4, 4, 4)),
    (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), (2, 4, 5, 5)),
]
of_layers = pytest.mark.parametrize(("make", "size"), LAYERS, ids=[str(f()) for f, _ in LAYERS])
of_starts = pytest.mark.parametrize("start", STARTS)


def spec_of(make: Callable[[], nn.Module], **choices: Any) -> OrepaSpec:
    (found,) = match(make()).matches
    return OrepaSpec.grouped(WeightForm.matched(found), **choices).with_dtype("float64")


def wave(output: int, outputs: int, tap: tuple[int, ...], sizes: tuple[int, ...]) -> float:
    """The fixed cosine of an output at one element of the kernel."""
    axis = next(a for a in reversed(range(len(sizes))) if output >= a * outputs / len(sizes))
    frequency = output + 1 - axis * outputs / len(sizes)
    return math.cos(math.pi * (tap[axis] + 0.5) * frequency / sizes[axis])


def written_out(tensors: list[np.ndarray], shape: tuple[int, ...], groups: int) -> np.ndarray:
    """The sum at the top of the file, entry by entry."""
    kernel, v, thin, change, second, points, depths = tensors
    (outputs, channels), sizes = shape[:2], shape[2:]
    inner, made = change.shape[1], np.zeros(shape)
    middle = tuple(size // 2 for size in sizes)
    for o, i in np.ndindex(outputs, channels):
        group = o // (outputs // groups)
        for m, tap in enumerate(np.ndindex(*sizes)):
            mixed = sum(
                (change[group, t, i] + (t % channels == i)) * second[o, t, m] for t in range(inner)
            )
            depthwise = sum(points[o, i, t] * depths[group * channels + i, t, m] for t in range(8))
            made[(o, i, *tap)] = (
                v[0, o] * kernel[(o, i, *tap)]
                + v[1, o] * thin[o, 0, i] / math.prod(sizes)
                + v[2, o] * thin[o, 1, i] * wave(o, outputs, tap, sizes)
                + v[3, o] * thin[o, 2, i] * (tap == middle)
                + v[4, o] * mixed
                + v[5, o] * depthwise
            )
    return made


@of_layers
def test_the_branches_are_summed(make: Callable[[], nn.Module], size: tuple[int, ...]) -> None:
    spec = spec_of(make)
    tensors = [random(*s, seed=k) for k, s in enumerate(OREPA.shapes(spec))]
    wanted = written_out([t.numpy() for t in tensors], spec.shape, spec.groups)
    np.testing.assert_allclose(OREPA.compose(tensors, spec).numpy(), wanted, rtol=1e-12, atol=1e-12)


def test_many_groups_are_twice_as_wide_inside() -> None:
    """As in the public code: more than 4 groups."""
    inner = {g: OrepaSpec((40, 40 // g, 3, 3), groups=g).inner * g for g in (1, 4, 5, 40)}
    assert inner == {1: 40, 4: 40, 5: 80, 40: 80}


def test_they_are_the_papers_layers_one_after_the_other() -> None:
    """Convolutions, a mean and depthwise convolutions in place of their kernels' sums."""
    spec = OrepaSpec((6, 4, 3, 3), "float64")
    tensors = [random(*s, seed=k) for k, s in enumerate(OREPA.shapes(spec))]
    kernel, v, thin, change, second, points, depths = tensors
    x = random(2, 4, 7, 7, seed=9)
    conv = nn.functional.conv2d
    means = nn.functional.avg_pool2d(conv(x, thin[:, 0, :, None, None]), 3, stride=1)
    cosines = torch.stack([cosine_filter(o) for o in range(6)])
    waves = conv(conv(x, thin[:, 1, :, None, None]), cosines[:, None], groups=6)
    taps = conv(x, thin[:, 2, :, None, None])[:, :, 1:-1, 1:-1]
    mixed = conv(
        conv(x, (change[0] + torch.eye(4).double())[:, :, None, None]),
        second.reshape(6, 4, 3, 3),
    )
    deep = conv(conv(x, depths.reshape(32, 1, 3, 3), groups=4), points.reshape(6, 32, 1, 1))
    outputs = [conv(x, kernel), means, waves, taps, mixed, deep]
    wanted = sum(
        gain[None, :, None, None] * output for gain, output in zip(v, outputs, strict=True)
    )
    found = conv(x, OREPA.compose(tensors, spec))
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def cosine_filter(output: int) -> Tensor:
    """Of 6 outputs the first three vary along the rows, the others along the columns."""
    line = torch.cos(math.pi * (torch.arange(3).double() + 0.5) * (output % 3 + 1) / 3)
    return (line[:, None] if output < 3 else line[None, :]).expand(3, 3)


def test_a_high_frequency_keeps_its_digits_in_single_precision() -> None:
    shape = (4096, 1, 7, 7)
    spec = OrepaSpec(shape)
    tensors = [torch.zeros(s) for s in OREPA.shapes(spec)]
    tensors[1][2], tensors[2][:, 1] = 1.0, 1.0
    waves = OREPA.compose(tensors, spec)
    for output in (0, 2047, 2048, 4095):
        wanted = [wave(output, 4096, tap, (7, 7)) for tap in np.ndindex(7, 7)]
        np.testing.assert_allclose(waves[output].flatten().numpy(), wanted, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("fill", [None, 0.0, 0.3, 3e4])
def test_the_start_is_the_weight_bit_for_bit(dtype: torch.dtype, fill: float | None) -> None:
    weight = random(6, 4, 3, 3).to(dtype)
    if fill is not None:
        weight.fill_(fill)
    spec = OrepaSpec((6, 4, 3, 3), str(dtype).removeprefix("torch."))
    kernel, gains, *others = OREPA.decompose(weight, spec)
    assert torch.equal(gains, torch.eye(6)[0, :, None].expand(6, 6).to(gains))
    assert torch.equal(OREPA.compose((kernel, gains, *others), spec), weight)
    # No branch is zero along with its gain: only D is, which K2 makes move.
    assert [bool(tensor.any()) for tensor in others] == [True, False, True, True, True]
    kernel.fill_(7)
    assert not torch.equal(kernel.to(dtype), weight), "the tensors are copies"


@of_layers
@pytest.mark.parametrize("case", ["random", "zero", "constant", "tiny", "huge", "one filter"])
def test_the_papers_gains_lose_nothing(
    make: Callable[[], nn.Module], size: tuple[int, ...], case: str
) -> None:
    spec = spec_of(make, start="paper").with_dtype("float32")
    made = random(*spec.shape).float()
    weight = {
        "random": made,
        "zero": made * 0,
        "constant": made * 0 + 0.3,
        "tiny": made * 1e-30,
        "huge": made * 1e30,
        "one filter": made
        * (torch.arange(spec.shape[0]) == 1).float().reshape(-1, *[1] * (made.ndim - 1)),
    }[case]
    tensors = OREPA.decompose(weight, spec)
    paper = torch.tensor([0.25, 0.25, 0.0, 1.0, 0.5, 0.5])
    assert torch.equal(tensors[1], paper[:, None].expand(6, spec.shape[0]))
    wide = OREPA.compose([t.double() for t in tensors], spec.with_dtype("float64"))
    norm = weight.double().norm()
    for composed in (wide, OREPA.compose(tensors, spec).double()):
        assert (composed - weight.double()).norm() <= 1e-6 * norm
    leaves = [t.clone().requires_grad_() for t in tensors]
    OREPA.compose(leaves, spec).sum().backward()
    assert all(leaf.grad is not None and bool(leaf.grad.isfinite().all()) for leaf in leaves)
    assert bool(leaves[1].grad[2].any()), "the branch whose gain is 0 has a gain that moves"


def test_entries_that_the_papers_gains_would_make_infinite_are_refused() -> None:
    weight = torch.full((6, 4, 3, 3), 2e38)
    with pytest.raises(InputError, match="too large for start='paper', .* take start='weight'"):
        OREPA.decompose(weight, OrepaSpec((6, 4, 3, 3), start="paper"))
    kernel = OREPA.decompose(weight, OrepaSpec((6, 4, 3, 3)))[0]
    assert torch.equal(kernel, weight)


def test_the_branches_are_as_large_as_hes_rule_makes_them() -> None:
    """Beside a kernel of that rule's size; every root mean square within a few percent."""
    spec = OrepaSpec((64, 32, 3, 3), "float64")
    weight = random(64, 32, 3, 3) * math.sqrt(2 / (32 * 9))
    _kernel, _v, thin, _d, second, points, depths = OREPA.decompose(weight, spec)
    found = [*thin.unbind(1), second, points, depths]
    fans = [32, 32, 32, 32 * 9, 32 * 8, 9]
    for tensor, fan in zip(found, fans, strict=True):
        rms = float(tensor.square().mean().sqrt())
        assert rms == pytest.approx(math.sqrt(2 / fan), rel=0.07)


@pytest.mark.parametrize(
    ("make", "size", "start"),
    [
        pytest.param(
            *(*layer, start),
            id=f"{start}-{layer[0]()}",
            # The start of the paper for every other layer.
            marks=() if start == "weight" or not place % 2 else pytest.mark.slow,
        )
        for place, layer in enumerate(LAYERS)
        for start in STARTS
    ],
)
def test_steps_and_fold_by_hand(
    make: Callable[[], nn.Module], size: tuple[int, ...], start: str
) -> None:
    """dL/dT of every tensor from dL/dW of the plain layer."""
    model, plain = model_of(make), model_of(make)
    spec = spec_of(make, start=start)
    key = "0.weight"
    plan = opdf.plan(model, parametrization=f"orepa(start={start})", min_size=1)
    assert plan.entries[0].spec == spec
    opt = opdf.Overparam(model, torch.optim.SGD, plan=plan, lr=0.05)
    tensors = [core.detach().clone() for core in opt.program.cores(key)]
    x = random(*size)
    for _ in range(3):
        for network in (model, plain):
            network.zero_grad()
            network(x).square().mean().backward()
        opt.step()
        slopes = by_hand(tensors, plain[0].weight.grad, spec)
        tensors = [t - 0.05 * slope for t, slope in zip(tensors, slopes, strict=True)]
        weight = written_out([t.numpy() for t in tensors], spec.shape, spec.groups)
        with torch.no_grad():
            plain[0].weight.copy_(torch.from_numpy(weight))
            if plain[0].bias is not None:
                plain[0].bias -= 0.05 * plain[0].bias.grad
    start_of = OREPA.decompose(model_of(make)[0].weight, spec)
    moved = [float((t - s).abs().max()) for t, s in zip(tensors, start_of, strict=True)]
    assert min(moved) > 1e-9, "every tensor moves"
    folded = opdf.fold(opt)
    assert isinstance(folded, nn.Sequential)
    np.testing.assert_allclose(folded[0].weight.detach().numpy(), weight, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(folded.eval()(x), plain.eval()(x), rtol=1e-12, atol=1e-12)


def by_hand(tensors: list[Tensor], gradient: Tensor, spec: OrepaSpec) -> list[Tensor]:
    """dL/dT of each tensor, from the six products written as sums over whole arrays."""
    outputs, channels, size, groups = spec.shape[0], spec.channels, spec.kernel, spec.groups
    kernel, v, thin, change, second, points, depths = (t.numpy() for t in tensors)
    g = gradient.numpy().reshape(outputs, channels, size)
    group = np.arange(outputs) // (outputs // groups)
    sizes = spec.shape[2:]
    taps = list(np.ndindex(*sizes))
    waves = np.array([[wave(o, outputs, tap, sizes) for tap in taps] for o in range(outputs)])
    middle = np.array([tap == tuple(s // 2 for s in sizes) for tap in taps], dtype=float)
    even = np.full((outputs, size), 1 / size)
    basis = np.stack([even, waves, np.tile(middle, (outputs, 1))], 1)
    both = change + np.tile(np.eye(channels), (spec.folds, 1))
    deep = depths.reshape(groups, channels, 8, size)[group]
    branches = [
        kernel.reshape(outputs, channels, size),
        *(thin[:, b, :, None] * basis[:, b, None, :] for b in range(3)),
        np.einsum("oti,otm->oim", both[group], second),
        np.einsum("oit,oitm->oim", points, deep),
    ]
    gained = [v[b][:, None, None] * g for b in range(6)]
    mixed = np.zeros_like(change)
    deeper = np.zeros((groups, channels, 8, size))
    for o in range(outputs):
        mixed[group[o]] += np.einsum("tm,im->ti", second[o], gained[4][o])
        deeper[group[o]] += np.einsum("it,im->itm", points[o], gained[5][o])
    found = [
        gained[0].reshape(spec.shape),
        np.stack([(g * branch).sum((1, 2)) for branch in branches]),
        np.stack([np.einsum("oim,om->oi", gained[1 + b], basis[:, b]) for b in range(3)], 1),
        mixed,
        np.einsum("oti,oim->otm", both[group], gained[4]),
        np.einsum("oitm,oim->oit", deep, gained[5]),
        deeper.reshape(depths.shape),
    ]
    return [torch.from_numpy(np.ascontiguousarray(slope)) for slope in found]


@of_layers
def test_the_graph_and_the_layer_plan_alike_and_shapes_tell_the_groups(
    make: Callable[[], nn.Module], size: tuple[int, ...]
) -> None:
    model = model_of(make)
    traced = opdf.trace(model, (random(*size),))
    plans = [opdf.plan(m, parametrization="orepa", min_size=1) for m in (model, traced)]
    assert plans[0].entries == plans[1].entries
    expanded = opdf.expand(traced, plans[1])
    with torch.no_grad():
        for parameter in expanded.parameters():
            parameter.add_(0.1)
    folded = opdf.fold(expanded)
    assert isinstance(folded, nn.Module)
    torch.testing.assert_close(folded(random(*size)), expanded(random(*size)))
    (entry,) = plans[0].entries
    shapes = [tuple(core.shape) for core in expanded.cores("0.weight")]
    form = WeightForm(shapes[0], "float64")
    assert OREPA.infer(shapes, form) == entry.spec, "shapes tell the groups, without a plan"
    others = [name for name in registered_names() if name not in ("orepa", "mpo", "svd")]
    for name in others:
        with pytest.raises(FoldError):
            registered(name).infer(shapes, form)


def test_what_is_no_kernel_is_left_alone_and_named() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 16, 1), nn.Flatten(), nn.Linear(144, 10))
    plan = opdf.plan(model, parametrization="orepa")
    assert [entry.key for entry in plan.entries] == ["0.weight"]
    assert "6 x 8 gains, inner 4" in str(plan)
    reason = "is no convolution kernel of more than one element, as orepa needs"
    assert [(row.key, row.reason) for row in plan.refusals] == [
        ("1.weight", reason),
        ("3.weight", reason),
    ]
    with pytest.raises(PlanError, match=f"then: weight {reason}"):
        opdf.plan(nn.Linear(30, 48), parametrization="orepa")
    with pytest.raises(PlanError, match="orepa has 7 tensors, found cores=3; leave cores out"):
        opdf.plan(model, parametrization="orepa", cores=3)


def test_clip_norms_leave_the_gains_out() -> None:
    model = model_of(LAYERS[0][0])
    traced = opdf.trace(model, (random(2, 4, 7, 7),))
    expanded = opdf.expand(traced, opdf.plan(traced, parametrization="orepa"))
    names = {name: id(p) for name, p in expanded.named_parameters()}
    counted = {id(p) for p in expanded.clip_norm_parameters()}
    assert {name for name in names if names[name] not in counted} == {"0.weight_cores.1"}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({3: (5, 4, 4)}, "groups is 5, wanted a divisor"),
        ({3: (4, 4)}, "a kernel, gains and five branches are wanted"),
        ({1: (5, 6)}, r"were found, orepa has \[\[6, 4, 3, 3\], \[6, 6\]"),
    ],
)
def test_only_its_own_shapes_are_inferred(
    change: dict[int, tuple[int, ...]], sentence: str
) -> None:
    good = OREPA.shapes(OrepaSpec((6, 4, 3, 3)))
    shapes = [change.get(place, shape) for place, shape in enumerate(good)]
    with pytest.raises(FoldError, match=sentence):
        OREPA.infer(shapes, WeightForm((6, 4, 3, 3)))
    assert OREPA.infer(good, WeightForm((6, 4, 3, 3))) == OrepaSpec((6, 4, 3, 3))
