"""Do two models compute the same? As far as the student itself can tell.

Allowed difference of outputs, for weights that differ by e_k = |W_k' - W_k| / |W_k| (Frobenius):

    noise     = max over draws of |f(W + d, x + r) - f(W, x)|
                d_k random with |d_k| = max(e_k, u) |W_k|,  r random with |r_i| <= u |x_i|
    tolerance = MARGIN noise + u sqrt(n) max|f|

u is the unit roundoff of float32, n the size of the widest weight: one dot product's own rounding.
The student is run, never a model of it: a network that amplifies rounding by 1e4 gets what it
needs and no more, and a weight that is wrong in the fourth digit is found in each of them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from opdf_compile.graph.phases import phase_flags

ROUNDOFF = 2.0**-24
DRAWS = 3
# The largest of three draws is exceeded by a fourth in one case of four; ten times it is not.
MARGIN = 10.0


@dataclass(frozen=True)
class Agreement:
    """How far two lists of outputs are apart.

    Attributes:
        error: The largest ratio of difference to tolerance; at most 1 if they agree.
        difference: The largest difference in the scale of its output.
        problem: Why they cannot be compared, or nothing.
    """

    error: float
    difference: float
    problem: str = ""

    def __bool__(self) -> bool:
        return not self.problem and self.error <= 1.0


def outputs(model: nn.Module, inputs: Mapping[str, Any]) -> list[Tensor]:
    """The tensors that a model returns in the eval phase, without gradients; its flags stay.

    Args:
        model: Any model.
        inputs: Keyword inputs.
    """
    torch.manual_seed(0)
    with torch.no_grad(), phase_flags(model, "eval"):
        result = model(**inputs)
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


def tolerances(
    student: nn.Module, inputs: Mapping[str, Any], errors: Mapping[str, float]
) -> list[float]:
    """The allowed difference of each output.

    Args:
        student: The plain model.
        inputs: Keyword inputs.
        errors: The relative error of each weight that differs, by name.
    """
    exact = outputs(student, inputs)
    parameters = dict(student.named_parameters())
    widest = max((p.numel() // p.shape[0] for p in parameters.values() if p.ndim > 1), default=1)
    # torch.func.functional_call would need no copy, but it leaves the Parameters of modules that
    # stand at two places frozen behind.
    double = copy.deepcopy(student)
    targets = dict(double.named_parameters())
    noise = [ROUNDOFF * widest**0.5 * _largest(y) for y in exact]
    for draw in range(DRAWS):
        generator = torch.Generator().manual_seed(draw)
        with torch.no_grad():
            for name, error in errors.items():
                targets[name].copy_(_moved(parameters[name], error, generator))
        rounded = {n: _rounded(value, generator) for n, value in inputs.items()}
        for place, (y, near) in enumerate(zip(exact, outputs(double, rounded), strict=True)):
            noise[place] = max(noise[place], MARGIN * _distance(y, near))
    return noise


def compare(found: list[Tensor], wanted: list[Tensor], allowed: list[float]) -> Agreement:
    """Compare outputs in order."""
    if [y.shape for y in found] != [y.shape for y in wanted]:
        return Agreement(1.0, 0.0, "the outputs have other shapes")
    if [y.dtype for y in found] != [y.dtype for y in wanted]:
        return Agreement(1.0, 0.0, "the outputs have other dtypes")
    worst = difference = 0.0
    for left, right, limit in zip(found, wanted, allowed, strict=True):
        if not torch.equal(_special(left), _special(right)):
            return Agreement(1.0, 0.0, "infinities or NaNs are in other places")
        distance = _distance(left, right)
        if distance > 0:
            worst = max(worst, distance / limit if limit else float("inf"))
            difference = max(difference, distance / (_largest(right) or 1.0))
    return Agreement(worst, difference)


def _moved(weight: Tensor, error: float, generator: torch.Generator) -> Tensor:
    step = torch.randn(weight.shape, generator=generator)
    scale = max(error, ROUNDOFF) * weight.detach().norm() / step.norm()
    moved: Tensor = weight.detach() + (scale * step).to(weight.dtype)
    return moved


def _rounded(value: Any, generator: torch.Generator) -> Any:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    return value * (1 + ROUNDOFF * (2 * torch.rand(value.shape, generator=generator) - 1))


def _special(value: Tensor) -> Tensor:
    """Which entries are no finite number, and which of these they are."""
    if not value.is_floating_point():
        return torch.zeros(())
    return torch.where(value.isfinite(), 0.0, torch.nan_to_num(value.float(), nan=2.0).sign() + 3)


def _distance(left: Tensor, right: Tensor) -> float:
    gap = (left.double() - right.double()).abs()
    finite = gap[left.isfinite() & right.isfinite()]
    return float(finite.max()) if finite.numel() else 0.0


def _largest(value: Tensor) -> float:
    finite = value.double()[value.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0
