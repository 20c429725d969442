"""What must hold after each step; a check that fails raises with a sentence."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from opdf_compile.planning.plans import Plan

# What the README promises of expand: each composed weight equals the original.
LOSSLESS = 1e-6


class CheckFailed(Exception):
    """A promise that this model showed to be broken."""


def require_lossless(
    originals: Mapping[str, Tensor], composed: Mapping[str, Tensor]
) -> dict[str, float]:
    """Each composed weight equals the original to 1e-6 of its Frobenius norm.

    Returns:
        The relative error of each weight.
    """
    errors = {name: relative(composed[name], weight) for name, weight in originals.items()}
    bad = {name: error for name, error in errors.items() if not error <= LOSSLESS}
    if bad:
        name = max(bad, key=lambda n: bad[n])
        raise CheckFailed(
            f"{len(bad)} weights are not what they were, {name} differs by {bad[name]:.1e} of its "
            f"norm, at most {LOSSLESS:.0e} is allowed"
        )
    return errors


def relative(found: Tensor, wanted: Tensor) -> float:
    """The distance of two weights in the Frobenius norm of the second."""
    left, right = found.detach().double(), wanted.detach().double()
    if left.shape != right.shape:
        return math.inf
    distance, size = float((left - right).norm()), float(right.norm())
    return distance / size if size else math.inf if distance else 0.0


@dataclass(frozen=True)
class Snapshot:
    """A model's tensors, their identities, and its flags, at one moment."""

    tensors: Mapping[str, Tensor]
    identities: Mapping[str, int]
    flags: tuple[bool, ...]
    gradients: Mapping[str, bool]

    @classmethod
    def of(cls, model: nn.Module) -> Snapshot:
        """Copy everything that must stay."""
        owned = owned_tensors(model)
        return cls(
            tensors={name: tensor.detach().clone() for name, tensor in owned.items()},
            identities={name: id(tensor) for name, tensor in owned.items()},
            flags=tuple(module.training for module in model.modules()),
            gradients={
                n: p.requires_grad for n, p in model.named_parameters(remove_duplicate=False)
            },
        )

    def require_same(self, model: nn.Module) -> None:
        """The model is, bit for bit, what it was."""
        owned = owned_tensors(model)
        if owned.keys() != self.tensors.keys():
            raise CheckFailed("the caller's model has other parameters or buffers than before")
        require_bits(self.tensors, owned, "the caller's model was changed")
        if any(id(owned[name]) != known for name, known in self.identities.items()):
            raise CheckFailed("the caller's model holds other tensor objects than before")
        if tuple(module.training for module in model.modules()) != self.flags:
            raise CheckFailed("the train or eval flags of the caller's model were changed")
        if any(p.grad is not None for p in model.parameters()):
            raise CheckFailed("the caller's model has gradients that nobody asked for")


def owned_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by all their names."""
    owned: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    owned.update(model.named_buffers(remove_duplicate=False))
    return owned


def require_bits(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], complaint: str) -> None:
    """Tensors of equal names are equal bit for bit."""
    for name, tensor in wanted.items():
        if not same_bits(tensor, found[name]):
            raise CheckFailed(f"{complaint}: {name} has other values")


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Equal values, NaNs in the same places included."""
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    flat = [value.detach().reshape(-1).contiguous() for value in (left, right)]
    return torch.equal(flat[0].view(torch.uint8), flat[1].view(torch.uint8))


def require_form(original: nn.Module, folded: nn.Module) -> None:
    """Same class, keys in order, shapes, dtypes, ties, requires_grad and flags."""
    if type(folded) is not type(original):
        raise CheckFailed(f"fold gave a {type(folded).__name__}, wanted {type(original).__name__}")
    left, right = original.state_dict(), folded.state_dict()
    if list(left) != list(right):
        odd = sorted(left.keys() ^ right.keys())
        raise CheckFailed(f"fold changed the keys: {odd[0] if odd else 'their order'}")
    for name, tensor in left.items():
        if (tensor.shape, tensor.dtype) != (right[name].shape, right[name].dtype):
            raise CheckFailed(f"fold changed the shape or dtype of {name}")
    if ties(original) != ties(folded):
        raise CheckFailed("fold changed which names share one Parameter")
    asks = [
        {n: p.requires_grad for n, p in m.named_parameters(remove_duplicate=False)}
        for m in (original, folded)
    ]
    flags = [[module.training for module in m.modules()] for m in (original, folded)]
    if asks[0] != asks[1] or flags[0] != flags[1]:
        raise CheckFailed("fold changed requires_grad or the train and eval flags")


def ties(model: nn.Module) -> set[frozenset[str]]:
    """Names that share one Parameter, as sets."""
    groups: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), set()).add(name)
    return {frozenset(group) for group in groups.values()}


def planned_names(plan: Plan) -> set[str]:
    """All names of the planned weights."""
    return {name for entry in plan.entries for name in (entry.key, *entry.aliases)}


def loss_of(output: object) -> Tensor:
    """A loss that every floating output is part of.

    The targets are random: a sum of squares alone has no gradient through a last LayerNorm.
    """
    generator = torch.Generator().manual_seed(1)
    terms = []
    for leaf in pytree.tree_leaves(output):
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.requires_grad:
            target = torch.randn(leaf.shape, generator=generator)
            # A mask of minus infinity among the outputs has no distance to anything.
            gap = (leaf.float() - target)[leaf.isfinite()]
            terms.append(gap.square().mean())
    if not terms:
        raise CheckFailed("no output depends on a trainable weight, so there is nothing to train")
    return torch.stack(terms).sum()


def require_finite(loss: Tensor) -> float:
    """The loss as a number."""
    value = float(loss.detach())
    if not math.isfinite(value):
        raise CheckFailed(f"the loss of the training step is {value}")
    return value


def unchanged(
    before: Mapping[str, list[Tensor]], after: Mapping[str, Iterable[Tensor]]
) -> list[str]:
    """Weights of which no core changed."""
    return [
        name
        for name, cores in before.items()
        if all(same_bits(old, new) for old, new in zip(cores, after[name], strict=True))
    ]


def require_idle(names: Iterable[str], student: nn.Module) -> None:
    """Weights whose cores did not move have no gradient in the student's own step either."""
    parameters = dict(student.named_parameters(remove_duplicate=False))
    for name in names:
        gradient = parameters[name].grad
        if gradient is not None and bool(gradient.any()):
            raise CheckFailed(
                f"the training step did not move the cores of {name}, whose weight has a gradient "
                "in the student's own step"
            )
