"""Matches found from modules, for what no graph can hold and for plans made before tracing."""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from opdf_compile.graph.ops import (
    BILINEAR,
    FROZEN,
    FUNCTION,
    FUSED_RECURRENT,
    NOT_DENSE,
    TIED,
)
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
# What holds more than one weight, by name.
_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
_CELL = ("weight_ih", "weight_hh")


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
    """All rows that modules give without a graph, one per Parameter.

    How a Parameter that no layer holds is used cannot be seen here: it is refused, with an offer,
    because over-parameterising it is exact whatever reads it.
    """
    report = layer_rows(model)
    seen = {row.key for row in report.matches} | {row.key for row in report.refusals}
    return replace(report, refusals=(*report.refusals, *_raw(model, seen)))


def layer_rows(model: nn.Module) -> MatchReport:
    """The weights of Linear, Conv and attention submodules, one row per Parameter.

    The module's forward is not run.
    """
    own = getattr(model, "weight_rows", None)
    if callable(own):  # A student that has no modules names its weights itself.
        rows = list(own())
        matched = tuple(row for row in rows if isinstance(row, Match))
        return MatchReport(matched, tuple(row for row in rows if isinstance(row, Refusal)))
    names = names_of_parameters(model)
    tables = (m for m in model.modules() if isinstance(m, nn.Embedding))
    embeddings = {id(table._parameters.get("weight")) for table in tables}
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
            row = _row(module, name, weight, known, tied=id(weight) in embeddings)
            if isinstance(row, Match):
                matches[id(weight)] = row
            else:
                refusals[id(weight)] = row
    return MatchReport(tuple(matches.values()), (*refusals.values(), *_packed(model)))


def _packed(model: nn.Module) -> Iterator[Refusal]:
    """Refusals for the layers of torch.ao.nn.quantized, which hold no Parameter."""
    for path, module in model.named_modules():
        # By name: the classes of torch.ao move to a package of their own.
        if ".nn.quantized" not in type(module).__module__:
            continue
        weight: Any = getattr(module, "weight", None)
        if callable(weight):
            reason = (
                "is packed as quantised integers, which are not trained: match the model before"
            )
            yield Refusal(f"{path}.weight".lstrip("."), reason, shape=tuple(weight().shape))


def _raw(model: nn.Module, seen: Set[str]) -> Iterator[Refusal]:
    """Refusals for the matrices that belong to no layer and are no lookup table."""
    names = names_of_parameters(model)
    for path, module in model.named_modules():
        # The parts of a computed weight stand behind the row of that weight.
        if isinstance(module, nn.Embedding | nn.EmbeddingBag | parametrize.ParametrizationList):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            key, *aliases = names[id(parameter)]
            part = name in ("weight_g", "weight_v", "weight_orig")
            mine = f"{path}.{name}".lstrip(".") == key and not part
            if key in seen or is_lazy(parameter) or parameter.ndim < 2 or not mine:
                continue
            reason = (
                f"belongs to a {type(module).__name__}: no graph shows how it is used (include= "
                "takes it all the same)"
            )
            offer = _found(parameter, (key, *aliases))
            yield Refusal(key, reason, shape=tuple(parameter.shape), offer=offer)


def _found(weight: Tensor, names: tuple[str, ...]) -> Match | None:
    """A Parameter of any use as a matrix: its last axis the columns."""
    if not is_weight_dtype(weight) or not weight.requires_grad:
        return None
    return Match(
        key=names[0],
        shape=tuple(weight.shape),
        dtype=str(weight.dtype).removeprefix("torch."),
        aliases=names[1:],
        row_axes=weight.ndim - 1,
    )


def is_lazy(parameter: Tensor) -> bool:
    """Whether a Parameter has no shape before the first forward (nn.LazyLinear)."""
    return isinstance(parameter, nn.parameter.UninitializedParameter)


def _weights(module: nn.Module) -> list[tuple[str, Any]]:
    if isinstance(module, nn.RNNBase | torch.jit.ScriptModule):
        return [(n, p) for n, p in module.named_parameters(recurse=False) if p.ndim > 1]
    if isinstance(module, nn.RNNCellBase):
        names: tuple[str, ...] = _CELL
    elif isinstance(module, nn.MultiheadAttention):
        names = _ATTENTION
    # transformers' Conv1D is a linear layer that stores its weight (in, out).
    elif type(module).__name__.endswith("Experts"):  # Raw stacks (experts, out, in) there.
        return [(n, p) for n, p in module.named_parameters(recurse=False) if p.ndim == 3]
    elif isinstance(module, (nn.Linear, nn.Bilinear, *_CONVOLUTIONS)) or _is_conv1d(module):
        names = ("weight",)
    else:
        names = ()
    return [found for name in names if (found := _stored(module, name)) is not None]


def _is_conv1d(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def _stored(module: nn.Module, name: str) -> tuple[str, Any] | None:
    """The Parameter that a weight is, or is computed from, with its name.

    A weight under a parametrization is not asked for: computing it may change the module (the
    power iteration of a spectral norm).
    """
    if name in module._parameters:
        weight = module._parameters[name]
        return None if weight is None else (name, weight)
    if parametrize.is_parametrized(module, name):
        home: Any = module.parametrizations
        found = [(n, p) for n, p in home[name].named_parameters(recurse=False) if p.ndim > 1]
        found = [(f"parametrizations.{name}.{n}", p) for n, p in found]
    else:  # The older weight_norm and spectral_norm.
        stems = (f"{name}_v", f"{name}_orig")
        found = [(n, module._parameters[n]) for n in stems if n in module._parameters]
    # A weight norm holds its gains too, one number a row.
    largest = max(found, key=lambda row: row[1].numel(), default=None)
    return largest or (name, getattr(module, name))


def _function(module: nn.Module, name: str) -> str | None:
    """The parametrization that makes a weight as a function of a whole matrix, or None."""
    if not parametrize.is_parametrized(module, "weight") or "parametrizations" not in name:
        return None
    home: Any = module.parametrizations
    kinds = [type(step).__name__.strip("_") for step in home["weight"]]
    return next((kind for kind in kinds if kind == "Orthogonal"), None)


def _row(
    module: nn.Module, name: str, weight: nn.Parameter, names: tuple[str, ...], *, tied: bool
) -> Match | Refusal:
    if is_lazy(weight):
        return Refusal(names[0], "is not initialised yet: run the model once on an example")
    shape = tuple(weight.shape)
    if isinstance(module, torch.jit.ScriptModule):
        return Refusal(names[0], "belongs to a torch.jit module, compiled code", shape=shape)
    if isinstance(module, nn.RNNBase | nn.Bilinear):
        reason = FUSED_RECURRENT if isinstance(module, nn.RNNBase) else BILINEAR
        return Refusal(names[0], reason, shape=shape)
    if not is_weight_dtype(weight):
        return Refusal(names[0], NOT_DENSE.format(weight.dtype), shape=shape)
    convolution = isinstance(module, _CONVOLUTIONS)
    found = Match(
        key=names[0],
        shape=shape,
        dtype=str(weight.dtype).removeprefix("torch."),
        transposed=_is_conv1d(module),
        kernel=prod(shape[2:]) if convolution else 1,
        aliases=names[1:],
        row_axes=1 if convolution else max(len(shape) - 1, 1),
        groups=getattr(module, "groups", 1) if convolution else 1,
    )
    if not weight.requires_grad:
        return Refusal(names[0], FROZEN, shape=shape)
    function = _function(module, name)
    if function is not None:
        reason = FUNCTION.format("the layer", function)
        return Refusal(names[0], reason, shape=shape, offer=found)
    if tied:
        return Refusal(names[0], TIED.format(shape[0]), shape=shape, offer=found)
    return found
