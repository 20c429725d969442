"""A teacher's answers, mixed with those of a pruned copy of it.

    (1 - s) T(x) + s T'(x)        T': of each Linear and Conv weight the smallest share is zero

A copy that lost its smallest weights is right about easy examples and less sure of hard ones, so
that the mix softens where softening is wanted. Source: Kim, Ham, Cho, Kim 2023 (R2KD), arXiv
2311.13934; its public code prunes 10 % of each layer by magnitude and takes s = 0.3.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import L1Unstructured

from opdf_compile.distill.recipe import Outputs

_PRUNED = (
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)


class Pruned(nn.Module):
    """A module that runs with its smallest weights at zero; it shares all other tensors with it.

    Args:
        module: Left as it is.
        amount: Share of each Linear and Conv weight, 0 to below 1; the number is rounded.
    """

    def __init__(self, module: nn.Module, amount: float) -> None:
        super().__init__()
        # In a list: its parameters are somebody else's.
        self._module = [module]
        by_size = L1Unstructured(amount)
        self.masked: dict[str, Tensor] = {
            f"{name}.weight".removeprefix("."): by_size.prune(layer.weight.detach())  # type: ignore[no-untyped-call]
            for name, layer in module.named_modules()
            if isinstance(layer, _PRUNED)
        }

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module returns with these weights."""
        return torch.func.functional_call(
            self._module[0], self.masked, args, kwargs, tie_weights=False
        )


def mixed(outputs: Outputs, others: Outputs, share: float) -> dict[str, Tensor]:
    """Two answers by name, the second of this share; whole numbers are the first's."""
    return {
        name: torch.lerp(tensor, others[name], share) if tensor.is_floating_point() else tensor
        for name, tensor in outputs.items()
    }
