"""Property: over random trees of modules every weight is a match or a refusal, exactly once."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from opdf_compile.graph.match import match
from opdf_compile.graph.rows import MatchReport
from opdf_compile.graph.trace import trace

WIDTH = 4


class AsImage(nn.Module):
    """A convolution between vectors of WIDTH."""

    def __init__(self, convolution: nn.Module, rank: int) -> None:
        super().__init__()
        self.convolution, self._rank = convolution, rank

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(x.reshape(*x.shape, *(1,) * self._rank)).flatten(1)


class Detached(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.inner(x)


class Idle(nn.Module):
    """Holds a module that forward does not call."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + 1


def leaf(kind: str) -> nn.Module:
    rank = int(kind[-1]) if kind[-1].isdigit() else 0
    if kind.startswith("conv"):
        return AsImage(getattr(nn, f"Conv{rank}d")(WIDTH, WIDTH, 1, groups=2), rank)
    if kind.startswith("transposed"):
        return AsImage(getattr(nn, f"ConvTranspose{rank}d")(WIDTH, WIDTH, 1), rank)
    if kind == "frozen":
        return nn.Linear(WIDTH, WIDTH).requires_grad_(False)
    if kind == "normed":
        return parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH))
    return nn.Linear(WIDTH, WIDTH)


KINDS = (
    "linear",
    "frozen",
    "normed",
    *(f"{k}{r}" for k in ("conv", "transposed") for r in (1, 2, 3)),
)
leaves = st.sampled_from(KINDS).map(leaf)
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: nn.Sequential(*parts)),
        inner.map(Detached),
        inner.map(Idle),
        inner.map(lambda part: nn.Sequential(part, nn.ReLU(), part)),
    ),
    max_leaves=5,
)


def weights(model: nn.Module) -> set[int]:
    """The Parameters of all Linear and Conv modules, or those that theirs are computed from."""
    found = set()
    for module in model.modules():
        if not isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
            continue
        if isinstance(module.weight, nn.Parameter) and "weight" in module._parameters:
            found.add(id(module.weight))
        else:
            found |= {id(p) for p in module.parametrizations.weight.parameters() if p.ndim > 1}
    return found


def rows(report: MatchReport) -> list[str]:
    return [row.key for row in (*report.matches, *report.refusals)]


@settings(max_examples=30)
@given(tree=trees)
def test_every_weight_is_reported_once(tree: nn.Module) -> None:
    report = match(trace(tree, (torch.randn(2, WIDTH),), dynamic=False))
    keys = rows(report)
    assert len(keys) == len(set(keys))
    by_name = dict(tree.named_parameters(remove_duplicate=False))
    # An idle weight_norm has no weight that any op reads: its parts are no weights of the graph.
    reported = {id(by_name[key]) for key in keys if key in by_name}
    idle = {
        id(p)
        for module in tree.modules()
        if isinstance(module, Idle)
        for name, p in module.named_parameters()
        if "parametrizations" in name
    }
    assert weights(tree) - idle <= reported
    matched = {row.key for row in report.matches}
    frozen = {name for name, p in by_name.items() if not p.requires_grad}
    assert not matched & frozen
    assert all(row.reason for row in report.refusals)


@settings(max_examples=15)
@given(tree=trees)
def test_the_module_level_view_has_the_same_keys(tree: nn.Module) -> None:
    report = match(trace(tree, (torch.randn(2, WIDTH),), dynamic=False))
    unread = {row.key for row in report.refusals if "not read" in row.reason}
    assert {row.key for row in report.matches} == {row.key for row in match(tree).matches} - unread
