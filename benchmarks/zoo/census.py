"""Which weights a model's Linear and Conv layers hold: counted without the matcher.

Two sources, each of which sees what the other misses: the modules that are there (also those that
forward does not reach), and the weights that functional linear and convolution calls are given
while the model runs (also raw Parameters without a Linear module).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from opdf_compile.graph.rows import MatchReport

# torch's own functions under which a call with a weight as second operand arrives.
_CALLS = frozenset(
    {
        F.linear,
        torch.conv1d,
        torch.conv2d,
        torch.conv3d,
        torch.conv_transpose1d,
        torch.conv_transpose2d,
        torch.conv_transpose3d,
    }
)


@dataclass
class Census:
    """The weights of Linear and Conv layers.

    Attributes:
        weights: One name and the size of each Parameter that is such a weight, by its id.
        computed: Paths of layers whose weight is computed from other Parameters, with the names of
            these.
    """

    weights: dict[int, tuple[str, int]] = field(default_factory=dict)
    computed: dict[str, tuple[str, ...]] = field(default_factory=dict)


def census(model: nn.Module, run: Callable[[], Any]) -> Census:
    """Take the census.

    Args:
        model: The model.
        run: Calls the model once.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    found = Census()
    for path, module in model.named_modules():
        if not is_layer(module):
            continue
        weight = module._parameters.get("weight")
        if weight is not None:
            found.weights[id(weight)] = (names[id(weight)], weight.numel())
        else:
            sources = (n for n, p in module.named_parameters() if p.ndim > 1)
            found.computed[path] = tuple(f"{path}.{n}" for n in sources)
    with _Calls(names) as calls:
        run()
    found.weights.update(calls.seen)
    return found


def is_layer(module: nn.Module) -> bool:
    """Whether a module is a linear or convolution layer; transformers has a linear `Conv1D`."""
    conv1d = type(module).__name__ == "Conv1D" and hasattr(module, "nf")
    return conv1d or isinstance(module, nn.Linear | _ConvNd)


class _Calls(TorchFunctionMode):
    """Notes the Parameters that linear and convolution functions are given as their weight."""

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self._names = names
        self.seen: dict[int, tuple[str, int]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func in _CALLS:
            weight = args[1] if len(args) > 1 else given.get("weight")
            if isinstance(weight, Tensor) and id(weight) in self._names and weight.ndim > 1:
                self.seen[id(weight)] = (self._names[id(weight)], weight.numel())
        return func(*args, **given)


@dataclass(frozen=True)
class Coverage:
    """What the matcher said about the weights of a census.

    Attributes:
        total: Parameters in Linear and Conv weights, each counted once.
        matched: Those that are matches.
        tied: Those refused because an embedding shares them; `include=` takes them.
        silent: Names of weights that are neither a match nor a refusal.
        reasons: Parameters of the other refusals by their reason.
    """

    total: int
    matched: int
    tied: int
    silent: tuple[str, ...]
    reasons: Mapping[str, int]


def coverage(model: nn.Module, taken: Census, report: MatchReport) -> Coverage:
    """Compare a census with the matcher's report."""
    keys: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        keys.setdefault(id(parameter), set()).add(name)
    matches = {name for m in report.matches for name in (m.key, *m.aliases)}
    refusals = {r.key: r for r in report.refusals}
    total = matched = tied = 0
    silent: list[str] = []
    reasons: dict[str, int] = {}
    for identity, (name, size) in taken.weights.items():
        total += size
        refused = [refusals[key] for key in keys[identity] if key in refusals]
        if keys[identity] & matches:
            matched += size
        elif not refused:
            silent.append(name)
        elif refused[0].offer is not None:
            tied += size
        else:
            reason = refused[0].reason
            reasons[reason] = reasons.get(reason, 0) + size
    # A computed weight has no row of its own: one row for what it is computed from will do.
    for path, sources in taken.computed.items():
        if not any(source in refusals or source in matches for source in sources):
            silent.append(path)
    return Coverage(total, matched, tied, tuple(silent), reasons)
