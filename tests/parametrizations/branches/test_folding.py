"""Branches fold into the convolution and its norm: against layers written out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opdf_compile.errors import FoldError
from opdf_compile.parametrizations import SiteSpec, SiteTensors, folded_site

EPS = 1e-3
# Of sums of some hundred products of numbers about 1, twice rounded on both sides.
CLOSE = {"rtol": 0.0, "atol": 2000 * 2.0**-52}


def norm_tensors(seed: int, features: int = 4) -> dict[str, Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    return {
        "weight": torch.rand(features, generator=drawn, dtype=torch.float64) + 0.5,
        "bias": torch.randn(features, generator=drawn, dtype=torch.float64),
        "running_mean": torch.randn(features, generator=drawn, dtype=torch.float64),
        "running_var": torch.rand(features, generator=drawn, dtype=torch.float64) + 0.5,
    }


def normed(x: Tensor, norm: dict[str, Tensor]) -> Tensor:
    mean, var = norm["running_mean"], norm["running_var"]
    return F.batch_norm(x, mean, var, norm["weight"], norm["bias"], False, 0.1, EPS)


def weight(*shape: int, seed: int) -> Tensor:
    drawn = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=drawn, dtype=torch.float64)


def below(name: str, values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{name}.{key}": value for key, value in values.items()}


def site(bias: bool = True, groups: int = 1, size: int = 3) -> SiteTensors:
    norm = norm_tensors(1)
    return SiteTensors(
        weight(4, 4 // groups, size, size, seed=2),
        norm["weight"],
        norm["bias"],
        norm["running_mean"],
        norm["running_var"],
        weight(4, seed=3) if bias else None,
    )


def run(own: SiteTensors, x: Tensor, *, stride: int = 1, groups: int = 1) -> Tensor:
    padding = own.weight.shape[-1] // 2
    y = F.conv2d(x, own.weight, own.bias, stride, padding, groups=groups)
    return F.batch_norm(y, own.mean, own.var, own.gamma, own.beta, False, 0.1, EPS)


def spec(*branches: str, stride: int = 1, groups: int = 1, size: int = 3) -> SiteSpec:
    shape = (4, 4 // groups, size, size)
    return SiteSpec(
        shape,
        (stride,) * 2,
        (size // 2,) * 2,
        (1, 1),
        groups,
        branches=branches,
        eps=EPS,
        dtype="float64",
    )


X = torch.randn(2, 4, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_point_and_the_identity(groups: int, bias: bool) -> None:
    own, one, two = site(bias, groups), norm_tensors(4), norm_tensors(5)
    point = weight(4, 4 // groups, 1, 1, seed=6)
    wanted = run(own, X, groups=groups)
    wanted = wanted + normed(F.conv2d(X, point, groups=groups), one) + normed(X, two)
    tensors = {
        "point.conv.weight": point,
        **below("point.norm", one),
        **below("identity.norm", two),
    }
    made = folded_site("w", spec("point", "identity", groups=groups), own, tensors)
    torch.testing.assert_close(run(made, X, groups=groups), wanted, **CLOSE)
    assert torch.equal(made.gamma, own.gamma) and torch.equal(made.var, own.var)


@pytest.mark.parametrize("stride", [1, 2])
def test_rows_columns_and_copies(stride: int) -> None:
    own = site()
    norms = [norm_tensors(seed) for seed in (4, 5, 6)]
    kernels = [weight(4, 4, *size, seed=7) for size in ((1, 3), (3, 1), (3, 3))]
    wanted = run(own, X, stride=stride)
    for kernel, norm in zip(kernels, norms, strict=True):
        sides = tuple(size // 2 for size in kernel.shape[2:])
        wanted = wanted + normed(F.conv2d(X, kernel, None, stride, sides), norm)
    names = ("row", "column", "copy1")
    tensors: dict[str, Tensor] = {}
    for name, kernel, norm in zip(names, kernels, norms, strict=True):
        tensors |= {f"{name}.conv.weight": kernel, **below(f"{name}.norm", norm)}
    made = folded_site("w", spec(*names, stride=stride), own, tensors)
    torch.testing.assert_close(run(made, X, stride=stride), wanted, **CLOSE)


def framed(x: Tensor, norm: dict[str, Tensor]) -> Tensor:
    """One ring of what the norm makes of zero around its output, tap by tap."""
    y = normed(x, norm)
    edge = norm["bias"] - norm["running_mean"] * norm["weight"] / (norm["running_var"] + EPS).sqrt()
    wide = edge.reshape(1, -1, 1, 1).expand(y.shape[0], -1, y.shape[2] + 2, y.shape[3] + 2).clone()
    wide[:, :, 1:-1, 1:-1] = y
    return wide


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 2])
def test_two_layers_with_a_border_between(groups: int, stride: int) -> None:
    own, columns = site(groups=groups), 4 // groups
    inner, outer, third, fourth = (norm_tensors(seed) for seed in (4, 5, 6, 7))
    one, two, three = (weight(4, columns, s, s, seed=s + 7) for s in (1, 3, 1))
    full = F.conv2d(
        framed(F.conv2d(X, one, groups=groups) + X, inner), two, None, stride, groups=groups
    )
    mean = F.avg_pool2d(framed(F.conv2d(X, three, groups=groups), third), 3, stride)
    wanted = run(own, X, stride=stride, groups=groups) + normed(full, outer) + normed(mean, fourth)
    tensors = {
        "point_full.conv1.weight": one,
        "point_full.conv.weight": two,
        "point_average.conv1.weight": three,
        **below("point_full.norm1", inner),
        **below("point_full.norm", outer),
        **below("point_average.norm1", third),
        **below("point_average.norm", fourth),
    }
    of = spec("point_full", "point_average", stride=stride, groups=groups)
    made = folded_site("w", of, own, tensors)
    found = run(made, X, stride=stride, groups=groups)
    torch.testing.assert_close(found, wanted, **CLOSE)
    wrong = folded_site("w", of, own, tensors | {"point_full.norm1.bias": inner["bias"] * 1.01})
    assert not torch.allclose(run(wrong, X, stride=stride, groups=groups), wanted, atol=1e-6)


def test_depthwise_means_and_gaps() -> None:
    own = site(groups=4, size=5)
    one, two, kernel = norm_tensors(4), norm_tensors(5), weight(4, 1, 3, 3, seed=8)
    gaps = F.conv2d(X, kernel, None, 1, 2, dilation=2, groups=4)
    wanted = run(own, X, groups=4) + normed(F.avg_pool2d(X, 5, 1, 2), one) + normed(gaps, two)
    tensors = {
        "dilated3x2.conv.weight": kernel,
        **below("average.norm", one),
        **below("dilated3x2.norm", two),
    }
    made = folded_site("w", spec("average", "dilated3x2", groups=4, size=5), own, tensors)
    torch.testing.assert_close(run(made, X, groups=4), wanted, **CLOSE)


@pytest.mark.parametrize("gain", [0.0, 1e-9])
def test_a_gain_that_is_almost_nothing(gain: float) -> None:
    """W would be divided by it; the channel is written with another gain."""
    own = site()
    own.gamma[1] = gain
    one = norm_tensors(4)
    point = weight(4, 4, 1, 1, seed=6)
    wanted = run(own, X) + normed(F.conv2d(X, point), one)
    tensors = {"point.conv.weight": point, **below("point.norm", one)}
    made = folded_site("w", spec("point"), own, tensors)
    torch.testing.assert_close(run(made, X), wanted, **CLOSE)
    assert made.weight.abs().max() < 1e3
    assert torch.equal(made.gamma[[0, 2, 3]], own.gamma[[0, 2, 3]])


@pytest.mark.parametrize(("share", "kept"), [(1.01, True), (0.99, False)])
def test_where_the_frame_changes(share: float, kept: bool) -> None:
    """Where W would grow by more than 2^10; on both sides the site computes the same."""
    own, one = site(), norm_tensors(4)
    point = weight(4, 4, 1, 1, seed=6)
    brought = (point.flatten(1).abs().amax(1) * one["weight"]) / (one["running_var"] + EPS).sqrt()
    edge = brought / own.weight.flatten(1).abs().amax(1) * (own.var + EPS).sqrt() * 2.0**-10
    own.gamma.copy_(share * edge)
    wanted = run(own, X) + normed(F.conv2d(X, point), one)
    tensors = {"point.conv.weight": point, **below("point.norm", one)}
    made = folded_site("w", spec("point"), own, tensors)
    torch.testing.assert_close(run(made, X), wanted, **CLOSE)
    assert torch.equal(made.gamma, own.gamma) is kept
    grown = made.weight.flatten(1).abs().amax(1) / own.weight.flatten(1).abs().amax(1)
    assert float(grown.max()) <= 2.0**10 + 1


def test_a_gain_of_zero_that_branches_add_nothing_to_stays() -> None:
    own, one = site(), norm_tensors(4)
    own.gamma[1] = 0.0
    one["weight"].zero_()
    one["bias"].zero_()
    tensors = {"point.conv.weight": weight(4, 4, 1, 1, seed=6), **below("point.norm", one)}
    made = folded_site("w", spec("point"), own, tensors)
    assert all(torch.equal(getattr(made, n), getattr(own, n)) for n in ("weight", "gamma", "mean"))


def test_dtypes_are_those_of_the_site() -> None:
    own = site().mapped(
        lambda tensor, name: tensor.float() if name == "gamma" else tensor.bfloat16()
    )
    tensors = {
        "point.conv.weight": weight(4, 4, 1, 1, seed=6),
        **below("point.norm", norm_tensors(4)),
    }
    made = folded_site("w", spec("point"), own, tensors)
    assert made.weight.dtype == torch.bfloat16 and made.gamma.dtype == torch.float32


def test_numbers_that_are_not_finite() -> None:
    tensors = {"identity.norm.weight": torch.full((4,), float("nan"), dtype=torch.float64)}
    rest = {k: v for k, v in below("identity.norm", norm_tensors(4)).items() if k not in tensors}
    with pytest.raises(FoldError, match="the branches of 'w' give NaN or infinity"):
        folded_site("w", spec("identity"), site(), tensors | rest)


def test_the_oracle_is_torch() -> None:
    """`normed` is what BatchNorm2d computes in eval mode."""
    norm = nn.BatchNorm2d(4, eps=EPS).double().eval()
    values = norm_tensors(4)
    norm.load_state_dict(values | {"num_batches_tracked": torch.tensor(0)})
    assert torch.equal(norm(X), normed(X, values))
