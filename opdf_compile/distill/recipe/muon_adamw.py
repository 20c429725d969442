"""MuonAdamW: a student's matrices by Muon, its vectors by AdamW, both at one learning rate.

A convolution's kernel (out, in, ...) is the matrix (out, in * ...); one side of 1 makes a vector.

matrix   M <- mu M + (1 - mu) G        U = G + mu (M - G), or M without Nesterov's step
         X <- U / |U|, five times X <- a X + (b A + c A^2) X with A = X X^T
         W <- (1 - lr w) W - lr 0.2 sqrt(max(rows, columns)) X
vector   W <- (1 - lr w) W - lr m / (sqrt(v) + eps), m and v Adam's means

The factor 0.2 sqrt(max(rows, columns)) gives a matrix's step the size that AdamW's usually has, so
that one rate suits both.

Sources: K. Jordan, Muon (2024), for the iteration and a, b, c; arXiv 2502.16982 for the factor;
Loshchilov & Hutter, arXiv 1711.05101, for AdamW.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

_COEFFICIENTS = (3.4445, -4.775, 2.0315)
_ITERATIONS = 5
_MATCHING = 0.2
_TINY = 1e-7


class MuonAdamW(Optimizer):
    """Muon for what is a matrix, AdamW for all else.

    Embeddings are matrices, too; groups of their own with ``matrices=False`` leave them to AdamW.

    Args:
        params: Parameters or groups of them.
        lr: Learning rate of both.
        betas: AdamW's.
        eps: AdamW's.
        weight_decay: Decoupled, of both.
        momentum: Muon's.
        nesterov: Whether Muon looks ahead.
        matrices: Whether matrices are Muon's.

    Example:
        >>> import torch
        >>> opt = MuonAdamW(torch.nn.Linear(4, 4).parameters(), lr=1e-3)
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        nesterov: bool = True,
        matrices: bool = True,
    ) -> None:
        """Check the options."""
        if not (0 <= momentum < 1 and all(0 <= beta < 1 for beta in betas)):
            raise ValueError(f"momentum {momentum} and betas {betas} must be in [0, 1)")
        if lr < 0 or eps < 0 or weight_decay < 0:
            raise ValueError(f"lr {lr}, eps {eps} and weight_decay {weight_decay} must not be < 0")
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        muons = {"momentum": momentum, "nesterov": nesterov, "matrices": matrices}
        super().__init__(params, options | muons)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            lr, decay = group["lr"], 1 - group["lr"] * group["weight_decay"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                by = _muon if group["matrices"] and _is_matrix(parameter) else _adam
                direction = by(parameter.grad, self.state[parameter], group)
                parameter.mul_(decay).add_(direction.to(parameter.dtype), alpha=-lr)
        return loss


def _is_matrix(parameter: Tensor) -> bool:
    return parameter.ndim >= 2 and parameter.numel() > parameter.shape[0] > 1


def _muon(gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    mean: Tensor = state.setdefault("momentum", torch.zeros_like(gradient))
    mean.lerp_(gradient, 1 - group["momentum"])
    ahead = gradient.lerp(mean, group["momentum"]) if group["nesterov"] else mean
    matrix = ahead.flatten(1)
    scale = _MATCHING * math.sqrt(max(matrix.shape))
    return scale * orthogonalised(matrix).view_as(gradient)


def _adam(gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    if not state:
        state |= {name: torch.zeros_like(gradient) for name in ("first", "second")}
        # As a tensor, which a state that is saved by name keeps as it is.
        state["step"] = torch.zeros((), dtype=torch.float32)
    state["step"] += 1
    (one, two), count = group["betas"], float(state["step"])
    first: Tensor = state["first"].lerp_(gradient, 1 - one) / (1 - one**count)
    second: Tensor = state["second"].lerp_(gradient.square(), 1 - two) / (1 - two**count)
    return first.div(second.sqrt().add(group["eps"]))


def orthogonalised(matrix: Tensor) -> Tensor:
    """About the nearest matrix with singular values of 1; they come out between 0.7 and 1.2.

    Args:
        matrix: ``(rows, columns)``, floating point; computed in float32 at least.
    """
    a, b, c = _COEFFICIENTS
    wide = matrix.shape[0] <= matrix.shape[1]
    x = (matrix if wide else matrix.T).to(torch.promote_types(matrix.dtype, torch.float32))
    x = x.div(x.norm().clamp(min=_TINY))
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, b * gram + c * gram @ gram, x, beta=a)
    return x if wide else x.T.contiguous()
