"""Property: over random trees of modules every weight is a match or a refusal, exactly once."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch
import torch.utils._pytree as pytree
from hypothesis import given, settings
from hypothesis import strategies as st
from long_tail import CASES, NESTED, Case, Untracked
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils._python_dispatch import TorchDispatchMode

from opdf_compile.graph.matching import match
from opdf_compile.graph.rows import MatchReport
from opdf_compile.graph.tracing import trace

WIDTH = 4


class AsImage(nn.Module):
    """A convolution between vectors of WIDTH."""

    def __init__(self, convolution: nn.Module, rank: int) -> None:
        super().__init__()
        self.convolution, self._rank = convolution, rank

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(x.reshape(*x.shape, *(1,) * self._rank)).flatten(1)


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
        inner.map(Untracked),
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
    return [*(row.key for row in report.matches), *(row.key for row in report.refusals)]


def reported(tree: nn.Module) -> MatchReport:
    return match(trace(tree, (torch.randn(2, WIDTH),), dynamic=False))


@settings(max_examples=8)
@given(tree=trees)
def test_a_few_trees(tree: nn.Module) -> None:
    """Both properties, which have more trees with the slow tests."""
    report = reported(tree)
    require_every_weight_once(tree, report)
    require_the_keys_of_the_modules(tree, report)


@pytest.mark.slow
@settings(max_examples=30)
@given(tree=trees)
def test_every_weight_is_reported_once(tree: nn.Module) -> None:
    require_every_weight_once(tree, reported(tree))


def require_every_weight_once(tree: nn.Module, report: MatchReport) -> None:
    keys = rows(report)
    assert len(keys) == len(set(keys))
    by_name = dict(tree.named_parameters(remove_duplicate=False))
    # An idle weight_norm has no weight that any op reads: its parts are no weights of the graph.
    found = {id(by_name[key]) for key in keys if key in by_name}
    idle = {
        id(p)
        for module in tree.modules()
        if isinstance(module, Idle)
        for name, p in module.named_parameters()
        if "parametrizations" in name
    }
    assert weights(tree) - idle <= found
    matched = {row.key for row in report.matches}
    frozen = {name for name, p in by_name.items() if not p.requires_grad}
    assert not matched & frozen
    assert all(row.reason for row in report.refusals)


@pytest.mark.slow
@settings(max_examples=15)
@given(tree=trees)
def test_the_module_level_view_has_the_same_keys(tree: nn.Module) -> None:
    require_the_keys_of_the_modules(tree, reported(tree))


def require_the_keys_of_the_modules(tree: nn.Module, report: MatchReport) -> None:
    unread = {row.key for row in report.refusals if "not read" in row.reason}
    assert {row.key for row in report.matches} == {row.key for row in match(tree).matches} - unread


# What a layer holds that is multiplied: every Parameter of these with two axes or more.
LAYERS = (nn.Linear, nn.modules.conv._ConvNd, nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase)
PRODUCT = re.compile(r"mm|mv|conv|linear|bilinear|attention|encoder_layer|rnn|lstm|gru")


class Watch(TorchDispatchMode):
    """Sees every op of one forward: which Parameters enter a product, at whatever distance.

    It shares no code with the matcher and looks at no graph. Memory is what it goes by: a view of a
    Parameter has the Parameter's memory, what is computed from Parameters alone is marked with
    their names, and what an input reaches is marked as fed. Every tensor is kept alive, so that no
    memory is used twice.
    """

    def __init__(self, model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.entered: set[str] = set()
        self._kept: list[Tensor] = list(inputs)
        self._fed = {memory(x) for x in inputs}
        self._made_of = {memory(p): {name} for name, p in model.named_parameters()}
        self._matrices = {name for name, p in model.named_parameters() if p.ndim > 1}

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        out = op(*args, **(kwargs or {}))
        read = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        made = [x for x in pytree.tree_leaves(out) if isinstance(x, Tensor)]
        self._kept += made
        product = PRODUCT.search(op.overloadpacket.__name__) is not None
        names = set().union(*(self._made_of.get(memory(x), set()) for x in read))
        if product:
            # A bias and what addmm adds to are no factors.
            self.entered |= {n for n in names if n in self._matrices}
        fed = any(memory(x) in self._fed for x in read)
        for x in made:
            if fed:
                self._fed.add(memory(x))
            elif not product:
                self._made_of[memory(x)] = self._made_of.get(memory(x), set()) | names
        return out


def memory(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def unreported(model: nn.Module, inputs: tuple[Tensor, ...], report: MatchReport) -> set[str]:
    """The matrices that a forward multiplies, or that layers hold, and that have no row."""
    wanted = {
        f"{path}.{name}".lstrip(".")
        for path, module in model.named_modules()
        for name, p in module.named_parameters(recurse=False)
        if p.ndim > 1 and isinstance(module, LAYERS) and not name.startswith("bias")
    }
    watch = Watch(model, inputs)
    with watch:
        model(*inputs)
    known = {name for row in report.matches for name in (row.key, *row.aliases)}
    known |= {row.key for row in report.refusals}
    first = {id(p): name for name, p in model.named_parameters()}
    by_name = dict(model.named_parameters(remove_duplicate=False))
    return {first[id(by_name[name])] for name in wanted | watch.entered} - known


# The quick ones, and those where an input reaches the weight before the product: the watch, which
# takes whatever an input reaches for an activation, cannot tell them.
SEEN = {
    "one of a stack",
    "einsum mixed",
    "times a constant",
    "batch-normed",
    "LSTMCell",
    "two weights",
}
BEYOND = {"modulated", "experts by gather"}
# A mode of torch cannot look into loops and branches: they are traced before they run.
WATCHED = [case for case in CASES if case not in NESTED]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "case",
    [pytest.param(c, id=c.name, marks=() if c.name in SEEN else pytest.mark.slow) for c in WATCHED],
)
def test_a_watched_forward_multiplies_nothing_that_has_no_row(case: Case) -> None:
    model, inputs = case.model(), case.inputs()
    report = match(trace(model, inputs, dynamic=False))
    assert unreported(model, inputs, report) == set()
    for row in report.matches:
        fewer = dataclasses.replace(report, matches=tuple(m for m in report.matches if m != row))
        missed = unreported(model, inputs, fewer)
        assert missed == {row.key} or case.name in BEYOND, row.key
