"""Matches found from modules, for what no graph can hold and for plans made before tracing."""

from __future__ import annotations

from math import prod
from typing import Any

from torch import nn

from opdf_compile.graph.rows import Match, MatchReport, Refusal
from opdf_compile.graph.sharing import is_weight_dtype, names_of_parameters

_CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)


def bare(model: nn.Module) -> nn.Module:
    """The user's own module inside the wrappers of torch.compile, DataParallel and DDP."""
    inner: Any = model
    while True:
        if hasattr(inner, "_orig_mod"):
            inner = inner._orig_mod
        elif isinstance(inner, nn.parallel.DistributedDataParallel | nn.DataParallel):
            inner = inner.module
        else:
            found: nn.Module = inner
            return found


def module_rows(model: nn.Module) -> MatchReport:
    """The Linear and Conv submodules of a module as matches, one per Parameter.

    Args:
        model: Any module; its forward is not run.
    """
    names = names_of_parameters(model)
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    matches: dict[int, Match] = {}
    refusals: dict[int, Refusal] = {}
    for path, module in model.named_modules():
        for name, weight in _weights(module):
            known = names.get(id(weight))
            if known is None:
                key = f"{path}.{name}".lstrip(".")
                reason = "is computed from other parameters before each use"
                refusals[id(weight)] = Refusal(key, reason, shape=tuple(weight.shape))
                continue
            if id(weight) in matches or id(weight) in refusals:
                continue
            row = _row(module, weight, known, tied=id(weight) in embeddings)
            if isinstance(row, Match):
                matches[id(weight)] = row
            else:
                refusals[id(weight)] = row
    return MatchReport(tuple(matches.values()), tuple(refusals.values()))


def _weights(module: nn.Module) -> list[tuple[str, Any]]:
    if isinstance(module, (nn.Linear, *_CONVOLUTIONS)):
        return [("weight", module.weight)]
    if isinstance(module, _RECURRENT):
        return [(n, p) for n, p in module.named_parameters(recurse=False) if p.ndim > 1]
    if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
        return [("in_proj_weight", module.in_proj_weight)]
    # transformers' Conv1D is a linear layer that stores its weight (in, out).
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        return [("weight", module.weight)]
    return []


def _row(
    module: nn.Module, weight: nn.Parameter, names: tuple[str, ...], *, tied: bool
) -> Match | Refusal:
    shape = tuple(weight.shape)
    if isinstance(module, _RECURRENT):
        reason = "is a recurrent weight: the fused kernel wants its weights in one flat buffer"
        return Refusal(names[0], reason, shape=shape)
    if isinstance(weight, nn.parameter.UninitializedParameter) or not is_weight_dtype(weight):
        return Refusal(names[0], f"has dtype {weight.dtype}, not a dense float weight", shape=shape)
    found = Match(
        key=names[0],
        shape=shape,
        dtype=str(weight.dtype).removeprefix("torch."),
        transposed=type(module).__name__ == "Conv1D",
        kernel=prod(shape[2:]) if isinstance(module, _CONVOLUTIONS) else 1,
        aliases=names[1:],
    )
    if not weight.requires_grad:
        reason = "is frozen (requires_grad=False): extra parameters would not be trained"
        return Refusal(names[0], reason, shape=shape)
    if tied:
        reason = f"is tied to an embedding of {shape[0]} rows (include= takes it all the same)"
        return Refusal(names[0], reason, shape=shape, offer=found)
    return found
