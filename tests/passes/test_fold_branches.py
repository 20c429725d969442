"""Branches folded by graph: against the model in float64, and against the algebra by hand."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

import pytest
import torch
from branched_models import CASES, RepVgg, case, stirred
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F

from opdf_compile.errors import InternalError
from opdf_compile.graph.dump import dump
from opdf_compile.graph.tracing import trace
from opdf_compile.passes.contract import PassResult
from opdf_compile.passes.fold_branches import BranchFold, BranchResult, FoldBranches


def eval_graph(model: nn.Module, x: Tensor) -> GraphModule:
    return trace(model, (x,), phases=("eval",)).graphs["eval"]


def folded(model: nn.Module, x: Tensor, *, norms: bool = False) -> BranchResult:
    return FoldBranches(norms)(eval_graph(model, x))  # type: ignore[return-value]


def layers(graph: GraphModule) -> list[str]:
    names = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    return [name for name in names if "conv" in name or "linear" in name]


# Variants of what the others cover.
SLOW = {"repvgg-3d", "repvgg-1d", "repvgg-depthwise", "two-blocks", "expanded", "dilated"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in CASES]
)
def test_a_folded_graph_is_the_same_function(name: str) -> None:
    model, x, regions = case(name)
    model, x = model.double(), x.double()
    result = folded(model, x)
    assert len(result.changes) == regions == len(layers(result.module))
    with torch.no_grad():
        wanted, found = model(x), result.module(x)
    # Sums of some hundred products in another order, twice: 1e-12 is ten times what they can lose.
    torch.testing.assert_close(found, wanted, rtol=0.0, atol=1e-12 * float(wanted.abs().max()))
    assert not any("batch_norm" in str(node.target) for node in result.module.graph.nodes)


@pytest.mark.parametrize("name", ["repvgg", "adapter", "weight-norm"])
def test_weights_keep_their_dtype_and_are_rounded_once(name: str) -> None:
    model, x, _ = case(name)
    single = folded(model, x).module
    double = folded(model.double(), x.double()).module
    exact = dict(double.named_parameters())
    for key, weight in single.named_parameters():
        assert weight.dtype is torch.float32
        assert torch.equal(weight, exact[key].float())


def test_repvgg_by_hand() -> None:
    model = stirred(RepVgg(3)).double()
    result = folded(model, torch.randn(1, 3, 5, 5).double())
    kernel, bias = torch.zeros(3, 3, 3, 3).double(), torch.zeros(3).double()
    parts = [model.dense.weight, F.pad(model.point.weight, [1, 1, 1, 1])]
    same = torch.zeros_like(kernel)
    same[range(3), range(3), 1, 1] = 1.0
    for part, norm in zip([*parts, same], model.norms, strict=True):
        for channel in range(3):
            sigma = (norm.running_var[channel] + norm.eps) ** 0.5
            kernel[channel] += part[channel] * norm.weight[channel] / sigma
            shift = norm.running_mean[channel] * norm.weight[channel] / sigma
            bias[channel] += norm.bias[channel] - shift
    state = dict(result.module.named_parameters())
    torch.testing.assert_close(state["weight"], kernel, rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(state["bias"], bias, rtol=1e-14, atol=1e-15)
    forgotten = kernel - same * (model.norms[2].weight / 1.0)[:, None, None, None]
    assert not torch.allclose(state["weight"], forgotten)


def test_the_graph_that_is_left() -> None:
    model, x, _ = case("repvgg")
    assert dump(folded(model, x).module, shapes=False).splitlines() == [
        "%0 : placeholder x",
        "%1 : get_attr weight",
        "%2 : get_attr bias",
        "%3 : aten.conv2d.default(%0, %1, %2, [1, 1], [1, 1], [1, 1], 1)",
        "%4 : aten.relu.default(%3)",
        "return (%4)",
    ]


def test_names_say_where_a_layer_was() -> None:
    model, x, _ = case("two-blocks")
    result = folded(model, x)
    assert [change.key for change in result.changes] == ["0.weight", "1.weight"]
    fold = result.changes[0]
    assert isinstance(fold, BranchFold)
    assert (fold.branches, fold.layers, fold.norms, fold.operations) == (3, 2, 3, 7)
    assert {"0.dense.weight", "0.norms.2.running_var"} <= set(fold.replaced)


def test_a_pass_leaves_its_input_and_finds_nothing_the_second_time() -> None:
    model, x, _ = case("mixer")
    graph = eval_graph(model, x)
    before = dump(graph)
    once = FoldBranches()(graph)
    assert dump(graph) == before
    assert not FoldBranches()(once.module).modified


def test_structure_does_not_depend_on_values() -> None:
    plain = RepVgg(4).eval()  # Every mean and every shift is 0.
    nn.init.zeros_(plain.point.weight)
    x = torch.randn(2, 4, 6, 6)
    trained = stirred(RepVgg(4))
    assert dump(folded(plain, x).module) == dump(folded(trained, x).module)


class Function(nn.Module):
    def __init__(self, forward: Callable[[nn.Module, Tensor], Tensor], bias: bool = False) -> None:
        super().__init__()
        self.one = nn.Conv2d(4, 4, 3, padding=1, bias=bias)
        self.two = nn.Conv2d(4, 4, 1, bias=bias)
        self.narrow, self.widen = nn.Conv2d(4, 1, 3, bias=False), nn.Conv2d(1, 4, 3, bias=False)
        self.norm, self.body = nn.BatchNorm2d(4), forward

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def shared(m: nn.Module, x: Tensor) -> Tensor:
    inner = m.one(x)
    return torch.relu(inner + m.two(x)) + torch.sigmoid(inner)


def overwritten(part: Callable[[Tensor], Tensor]) -> Callable[[nn.Module, Tensor], Tensor]:
    def body(m: nn.Module, x: Tensor) -> Tensor:
        source = x * torch.sigmoid(x)
        first = m.one(source)
        part(source).relu_()
        return torch.relu(first + m.two(source))

    return body


# What meets and is no one layer, with the reason.
REFUSED: dict[str, tuple[Callable[[nn.Module, Tensor], Tensor], bool, str]] = {
    "nonlinear": (
        lambda m, x: m.one(x) + torch.relu(m.two(x)) + m.norm(m.two(x)),
        False,
        r"ends? at different places: relu \(aten.relu.default\) is not linear",
    ),
    "shared": (shared, False, r"conv2d is read by sigmoid too"),
    "border": (
        lambda m, x: torch.relu(m.one(m.two(x))),
        True,
        "pads with zeros what a bias was added to",
    ),
    "dearer": (
        lambda m, x: torch.relu(m.widen(m.narrow(x))),
        False,
        "would cost 400 multiplications per place, its parts cost 72",
    ),
    "product": (lambda m, x: m.one(x) * m.two(x), False, ""),
    "plain": (lambda m, x: torch.relu(m.norm(m.one(x))), False, ""),
    "residual": (lambda m, x: x.relu() + m.two(torch.relu(m.one(x.relu()))), False, ""),
    "tied": (lambda m, x: torch.relu(F.conv2d(x, m.two.weight.transpose(0, 1))), False, ""),
    "pooled": (
        lambda m, x: m.one(x) + F.avg_pool2d(m.two(x), 3, 1, 1, count_include_pad=False),
        False,
        "",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_one_layer_stays_with_a_reason(name: str) -> None:
    body, bias, reason = REFUSED[name]
    torch.manual_seed(0)
    model, x = stirred(Function(body, bias)).double(), torch.randn(2, 4, 9, 9).double()
    result = folded(model, x)
    with torch.no_grad():
        torch.testing.assert_close(result.module(x), model(x), rtol=0.0, atol=1e-12)
    assert not result.modified
    found = [str(refusal) for refusal in result.refused]
    assert any(re.search(reason, sentence) for sentence in found) if reason else not found


# The tensor itself is read anew by the second branch; a view of it leaves both with one source.
OVERWRITTEN = {
    "itself": (lambda source: source, ""),
    "a view": (lambda source: source.unsqueeze(0), "overwrites .* between the branches"),
    "a part": (lambda source: source[:, :2], "overwrites .* between the branches"),
}


@pytest.mark.parametrize("name", OVERWRITTEN)
def test_a_source_that_is_overwritten_between_its_branches(name: str) -> None:
    part, reason = OVERWRITTEN[name]
    model, x = stirred(Function(overwritten(part))), torch.randn(2, 4, 9, 9)
    result = folded(model, x)
    with torch.no_grad():
        torch.testing.assert_close(result.module(x.clone()), model(x.clone()))
    assert not result.modified
    assert re.search(reason, "; ".join(map(str, result.refused)))


@torch.no_grad()
def without_gradients(source: Tensor) -> tuple[Tensor, Tensor]:
    return source + 1, source.unsqueeze(0).view_as(source)


T = torch.zeros(())
HANDS_BACK: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout": lambda source: F.dropout(source, training=False),
    "axes": lambda source: torch.einsum("abcd->abdc", source),
    "grid": lambda source: torch.meshgrid(source.view(-1), indexing="ij")[0].view_as(source),
    "broadcast": lambda source: torch.broadcast_tensors(torch.zeros((1,) * 5), source)[1][0],
    "at least": lambda source: torch.atleast_3d(source.view(-1)).view_as(source),
    "at least, of two": lambda source: torch.atleast_2d(T, source.view(-1))[1].view_as(source),
    "region": lambda source: without_gradients(source)[1],
}


def handed_outside(name: str, part: Callable[[Tensor], Tensor], m: nn.Module, x: Tensor) -> Tensor:
    source = x * torch.sigmoid(x)
    handed = HANDS_BACK[name](source)
    first = m.one(source)
    part(handed).relu_()
    return torch.relu(first + m.two(source))


def dropped_inside(part: Callable[[Tensor], Tensor], m: nn.Module, x: Tensor) -> Tensor:
    source = x * torch.sigmoid(x)
    handed = F.dropout(source, training=False)
    first = m.one(handed)
    part(source).relu_()
    return torch.relu(first + m.two(handed))


@pytest.mark.parametrize(
    ("body", "name"),
    [
        *((dropped_inside, name) for name in OVERWRITTEN),
        *(
            # What every op hands back is overwritten in part in every run.
            pytest.param(
                *(partial(handed_outside, op), name),
                id=f"{op}-{name}",
                marks=() if name == "a part" else pytest.mark.slow,
            )
            for op in HANDS_BACK
            for name in OVERWRITTEN
        ),
    ],
)
def test_what_hands_back_its_operand(
    body: Callable[[Callable[[Tensor], Tensor], nn.Module, Tensor], Tensor], name: str
) -> None:
    """No schema of these ops, nor of a region, says so; and both may be written to."""
    part, _reason = OVERWRITTEN[name]
    model, x = stirred(Function(partial(body, part))), torch.randn(2, 4, 9, 9)
    result = folded(model, x)
    with torch.no_grad():
        torch.testing.assert_close(result.module(x.clone()), model(x.clone()))
    assert "overwrites mul between the branches" in "; ".join(map(str, result.refused))


def test_a_lone_norm_folds_where_that_is_asked_for() -> None:
    model = stirred(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()))
    model, x = model.double(), torch.randn(2, 3, 6, 6).double()
    assert not folded(model, x).modified
    result = folded(model, x, norms=True)
    assert [change.key for change in result.changes] == ["0.weight"]
    with torch.no_grad():
        torch.testing.assert_close(result.module(x), model(x), rtol=0.0, atol=1e-13)


def test_a_training_graph_has_no_regions() -> None:
    model, x, _ = case("repvgg")
    graph = trace(model.train(), (x,), phases=("train",)).graphs["train"]
    assert not FoldBranches()(graph).modified


def test_a_pass_that_left_a_region_is_caught() -> None:
    model, x, _ = case("repvgg")
    with pytest.raises(InternalError, match="were left"):
        FoldBranches().ensures(PassResult(eval_graph(model, x)))
