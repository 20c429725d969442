"""Fold the branches of a site into its convolution and its norm; in float64.

The site computes ``s0 (W0 x + b0 - mean0) + beta0`` and each branch ``s (K x + k - mean) + beta``,
with s = gamma / sigma and sigma = sqrt(var + eps), all in eval mode. One convolution and one norm
that compute the sum, with gamma0 and var0 as they are, so that class, keys and graph stay:

    W    <- W0    + sum s K / s0
    mean <- mean0 + sum s (mean - k) / s0
    beta <- beta0 + sum beta

gamma0 may be 0 (many residual blocks start so), or so small that W would grow beyond measure, and
out of float16. Such a channel is written in another frame, which computes the same: gamma0 <-
sigma0.
In train mode the statistics of a batch differ afterwards: folding ends the phase with branches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from opdf_compile.errors import FoldError
from opdf_compile.graph import NORM_TENSORS
from opdf_compile.parametrizations.branches.site_form import SiteForm, SiteSpec
from opdf_compile.parametrizations.branches.steps import Average, Branch, Conv, Norm, branch_of
from opdf_compile.tensor import Convolution, Normalization, average, composed, identity

# W grows by at most about 2^10 in its own frame, which leaves weights of size 1 within float16
# (65,504); a channel that would grow by more is written in the other one. Both are exact: where
# between them the line is drawn is a choice.
SMALLEST_OWN = 2.0**-10


@dataclass(frozen=True, eq=False)
class SiteTensors:
    """The numbers of a convolution and its norm.

    Attributes:
        weight: Of the convolution.
        gamma: Of the norm: its weight.
        beta: Its bias.
        mean: Its running mean.
        var: Its running variance.
        bias: Of the convolution, if it has one.
    """

    weight: Tensor
    gamma: Tensor
    beta: Tensor
    mean: Tensor
    var: Tensor
    bias: Tensor | None = None

    def mapped(self, function: Callable[[Tensor, str], Tensor]) -> SiteTensors:
        """Each of them through a function of it and its name here."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        made: dict[str, Any] = {n: v if v is None else function(v, n) for n, v in values.items()}
        return SiteTensors(**made)


def branch_tensor_names(branch: Branch) -> tuple[str, ...]:
    """Names of the tensors that a branch's function depends on, as ``point.norm.weight``."""
    own = {Conv: ("weight",), Norm: NORM_TENSORS}
    return tuple(
        f"{branch.name}.{step_name}.{tensor}"
        for step_name, step in branch.steps
        for tensor in own.get(type(step), ())
    )


def folded_site(
    key: str, spec: SiteSpec, own: SiteTensors, tensors: Mapping[str, Tensor]
) -> SiteTensors:
    """A site without its branches that computes in eval mode what it did with them.

    Args:
        key: Name of the convolution's weight, for messages.
        spec: What branches there are.
        own: The convolution and its norm.
        tensors: Of the branches, by the names of `branch_tensor_names`.

    Returns:
        In the dtypes of `own`, rounded once.

    Raises:
        FoldError: The result holds NaN or infinity.
    """
    exact = own.mapped(lambda tensor, _name: tensor.detach().double())
    doubled = {name: tensor.detach().double() for name, tensor in tensors.items()}
    kernel = torch.zeros_like(exact.weight)
    mean, beta = torch.zeros_like(exact.mean), exact.beta
    for name in spec.branches:
        before, norm = _without_last_norm(branch_of(name, spec), spec, doubled)
        kernel = kernel + before.scaled(norm.scale, torch.zeros_like(norm.scale)).kernel
        mean = mean + norm.scale * (norm.mean - before.bias)
        beta = beta + norm.beta
    made = _in_own_frame(exact, spec.eps, kernel, mean, beta)
    return made.mapped(lambda tensor, name: _rounded(key, tensor, getattr(own, name).dtype))


def _rounded(key: str, exact: Tensor, dtype: torch.dtype) -> Tensor:
    made = exact.to(dtype)
    if not torch.isfinite(made).all():
        raise FoldError(
            f"the branches of {key!r} give NaN or infinity, wanted finite numbers; training "
            "diverged: fold an earlier checkpoint, or lower the learning rate"
        )
    return made


def _in_own_frame(
    own: SiteTensors, eps: float, kernel: Tensor, mean: Tensor, beta: Tensor
) -> SiteTensors:
    """What the branches bring, written into the numbers of the site.

    Args:
        own: The site.
        eps: Of its norm.
        kernel: The sum of s K.
        mean: The sum of s (mean - k).
        beta: The sum of all beta, the site's own included.
    """
    norm = Normalization(own.gamma, own.beta, own.mean, own.var, eps)
    sigma, scale = norm.sigma, norm.scale
    brought = kernel.flatten(1).abs().amax(1)
    left = SMALLEST_OWN * brought > (scale * own.weight.flatten(1).abs().amax(1)).abs()
    left |= (scale == 0) & ((brought != 0) | (mean != 0))
    bias = torch.zeros_like(own.mean) if own.bias is None else own.bias
    # In the other frame the scale is 1; a channel of scale 0 that branches bring nothing to stays.
    divisor = torch.where(left | (scale == 0), torch.ones_like(scale), scale)
    wide = divisor.reshape(-1, *[1] * (kernel.ndim - 1))
    factor = torch.where(left, scale, torch.ones_like(scale))
    weight = own.weight * factor.reshape(wide.shape) + kernel / wide
    moved = torch.where(left, bias - scale * (bias - own.mean), own.mean) + mean / divisor
    gamma = torch.where(left, sigma, own.gamma)
    return SiteTensors(weight, gamma, beta, moved, own.var, own.bias)


def _without_last_norm(
    branch: Branch, spec: SiteSpec, tensors: Mapping[str, Tensor]
) -> tuple[Convolution, Normalization]:
    """The map up to the last norm, with a kernel of the site's size; and that norm."""
    last_name, last = branch.steps[-1]
    assert isinstance(last, Norm)
    norm = _norm(f"{branch.name}.{last_name}", tensors, spec)
    made: Convolution | None = None
    for step_name, step in branch.steps[:-1]:
        name = f"{branch.name}.{step_name}"
        if isinstance(step, Norm):
            assert made is not None
            made = _norm(name, tensors, spec).after(made)
            continue
        layer = _layer(step, spec, tensors.get(f"{name}.weight"), norm.gamma)
        made = layer if made is None else composed(made, layer, spec.groups)
    made = made or identity(spec.channels, spec.groups, spec.axes, like=norm.gamma)
    return made.centred(spec.kernel), norm


def _layer(
    step: Conv | Average, form: SiteForm, weight: Tensor | None, like: Tensor
) -> Convolution:
    if isinstance(step, Average):
        return average(step.channels, form.groups, step.kernel, like)
    assert weight is not None
    if step.plus_input:
        weight = weight + identity(step.shape[0], step.groups, form.axes, like).kernel
    return Convolution(weight, weight.new_zeros(step.shape[0])).dilated(step.dilation)


def _norm(name: str, tensors: Mapping[str, Tensor], spec: SiteSpec) -> Normalization:
    gamma, beta = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
    mean, var = tensors[f"{name}.running_mean"], tensors[f"{name}.running_var"]
    return Normalization(gamma, beta, mean, var, spec.eps)
