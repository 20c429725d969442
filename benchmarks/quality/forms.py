"""Forms: how a student's weights are held while they train, as one flat vector per replica.

    flat (P,)  --split, compose-->  weights by name        start: weights  --decompose-->  flat

Over-parameterised forms use the package's own `decompose` and `compose`; a fleet maps them over its
replicas. Decay of the weight is carried by its tensors, as `Overparam(decay="weight")` does: a
weight that is homogeneous of degree h in its tensors scales by c if each of them does by c^(1/h).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from opdf_compile.errors import PlanError
from opdf_compile.planning.choose import plan

Weights = Mapping[str, Tensor]
_EXPANSION = 4
_POWER = 2.0


@dataclass(frozen=True)
class Leaf:
    """One trained tensor.

    Attributes:
        shape: Its shape.
        exponent: Decay takes the tensor to (1 - lr wd)^exponent times itself.
        trained: Whether it moves at all.
    """

    shape: tuple[int, ...]
    exponent: float
    trained: bool = True


@dataclass(frozen=True)
class Part:
    """A parameter of the student and the leaves that make it."""

    name: str
    leaves: tuple[Leaf, ...]
    compose: Callable[[Sequence[Tensor]], Tensor]
    decompose: Callable[[Tensor], Sequence[Tensor]]
    matched: bool = True


@dataclass(frozen=True)
class Form:
    """All parameters of a student."""

    name: str
    parts: tuple[Part, ...]

    @property
    def leaves(self) -> list[Leaf]:
        """Leaves of all parts, in the order of the flat vector."""
        return [leaf for part in self.parts for leaf in part.leaves]

    @property
    def sizes(self) -> list[int]:
        """Entries of each leaf."""
        return [math.prod(leaf.shape) for leaf in self.leaves]

    def per_entry(self, of_leaf: Callable[[Leaf], float]) -> Tensor:
        """A figure of each leaf, repeated for its entries: ``(P,)`` float64."""
        values = torch.tensor([of_leaf(leaf) for leaf in self.leaves], dtype=torch.float64)
        return values.repeat_interleave(torch.tensor(self.sizes))

    def weights(self, flat: Tensor) -> dict[str, Tensor]:
        """The student's parameters of one replica's flat vector."""
        pieces = iter(torch.split(flat, self.sizes))
        return {
            part.name: part.compose([next(pieces).view(leaf.shape) for leaf in part.leaves])
            for part in self.parts
        }

    def start(self, weights: Weights) -> Tensor:
        """The flat vector from which one replica starts."""
        tensors = [t for part in self.parts for t in part.decompose(weights[part.name])]
        return torch.cat([tensor.flatten() for tensor in tensors])


def plain(student: nn.Module) -> Form:
    """The weights themselves."""
    return Form("plain", tuple(_kept(n, p) for n, p in student.named_parameters()))


def package(student: nn.Module, parametrization: str, cores: int, *, frozen: bool = False) -> Form:
    """A parametrization of the package, with the specs of the package's own plan.

    Args:
        student: Any student of the kind.
        parametrization: Name in the registry.
        cores: Tensors per weight.
        frozen: Whether all but the first and the last tensor of a weight stay where they start.
    """
    entries = {
        e.key: e for e in plan(student, cores=cores, parametrization=parametrization).entries
    }
    parts = [
        _of_entry(entries[name], frozen) if name in entries else _kept(name, parameter)
        for name, parameter in student.named_parameters()
    ]
    return Form(f"{parametrization}-{cores}{'-frozen' if frozen else ''}", tuple(parts))


def wide(student: nn.Module) -> Form:
    """ExpandNets' idea (arXiv 1811.10495): each matrix is B A, four times as wide as its rank.

    Of B and A the one at the smaller side is random with nearly orthonormal columns or rows, fixed
    by the weight's name, and the other one makes up for it through its pseudo-inverse: the start
    is the student's own weight, as for all other forms.
    """
    planned = {e.key for e in plan(student, cores=2).entries}
    parts = [
        _expanded(name, parameter) if name in planned else _kept(name, parameter)
        for name, parameter in student.named_parameters()
    ]
    return Form("wide", tuple(parts))


def powered(student: nn.Module) -> Form:
    """Powerpropagation (arXiv 2110.00296) with exponent 2: w = t |t|, entry by entry."""
    planned = {e.key for e in plan(student, cores=2).entries}
    parts = [
        _powered(name, parameter) if name in planned else _kept(name, parameter)
        for name, parameter in student.named_parameters()
    ]
    return Form("powerprop", tuple(parts))


def _kept(name: str, parameter: Tensor) -> Part:
    shape = tuple(parameter.shape)
    decayed = 1.0 if len(shape) > 1 else 0.0
    return Part(name, (Leaf(shape, decayed),), lambda ts: ts[0], lambda w: (w,), matched=False)


def _of_entry(entry: Any, frozen: bool) -> Part:
    chosen, spec = entry.by, entry.spec
    shapes = chosen.shapes(spec)
    trained = [not frozen or k in (0, len(shapes) - 1) for k in range(len(shapes))]
    degree = _degree(chosen, sum(trained))
    leaves = tuple(
        Leaf(tuple(shape), 1 / degree if moves else 0.0, moves)
        for shape, moves in zip(shapes, trained, strict=True)
    )
    # A fleet in float64 composes in float64, whatever dtype the spec's weight has.
    return Part(
        entry.key,
        leaves,
        entry.compose,
        lambda w: chosen.decompose(w, spec.with_dtype(str(w.dtype).removeprefix("torch."))),
    )


def _degree(chosen: Any, trained: int) -> float:
    """The degree of homogeneity of the weight in its trained tensors."""
    if chosen.multilinear:
        return float(trained)
    raise PlanError(f"{chosen.name!r} is not linear in its tensors, wanted a form of its own here")


def _expanded(name: str, parameter: Tensor) -> Part:
    shape = tuple(parameter.shape)
    rows, cols = shape[0], math.prod(shape[1:])
    hidden = _EXPANSION * min(rows, cols)
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    fixed = torch.randn(hidden, min(rows, cols), generator=generator, dtype=torch.float64)
    fixed = fixed / hidden**0.5
    inverse = torch.linalg.pinv(fixed)

    def decompose(weight: Tensor) -> tuple[Tensor, Tensor]:
        matrix = weight.flatten(1).double()
        pair = (fixed.mT, inverse.mT @ matrix) if rows < cols else (matrix @ inverse, fixed)
        return pair[0].to(weight.dtype), pair[1].to(weight.dtype)

    leaves = (Leaf((rows, hidden), 0.5), Leaf((hidden, cols), 0.5))
    return Part(name, leaves, lambda ts: (ts[0] @ ts[1]).view(shape), decompose)


def _powered(name: str, parameter: Tensor) -> Part:
    return Part(
        name,
        (Leaf(tuple(parameter.shape), 1 / _POWER),),
        lambda ts: ts[0] * ts[0].abs() ** (_POWER - 1),
        lambda w: (w.sign() * w.abs() ** (1 / _POWER),),
    )
