"""match: each kind of weight, each kind of refusal, and the module-level view of the same."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opdf_compile.graph.matching import match
from opdf_compile.graph.rows import Match, MatchReport
from opdf_compile.graph.tracing import trace


class Calls(nn.Module):
    """A Parameter `w` that a function reads."""

    def __init__(self, shape: tuple[int, ...], call: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(shape))
        self._call = call

    def forward(self, x: Tensor) -> Tensor:
        return self._call(x, self.w)


def found(model: nn.Module, *shape: int) -> MatchReport:
    return match(trace(model, (torch.randn(shape),)))


def only(report: MatchReport) -> Match:
    assert len(report.matches) == 1, str(report)
    assert not report.refusals, str(report)
    return report.matches[0]


MATRICES = [
    ("linear", (6, 8), lambda x, w: F.linear(x, w), False, 2 * 5 * 8 * 6),
    ("addmm", (8, 6), lambda x, w: torch.addmm(torch.zeros(6), x, w), True, 2 * 5 * 8 * 6),
    ("mm", (8, 6), lambda x, w: torch.mm(x, w), True, 2 * 5 * 8 * 6),
    ("mm left", (6, 8), lambda x, w: torch.mm(w, x.t()), False, 2 * 5 * 8 * 6),
    ("mm of a transpose", (6, 8), lambda x, w: torch.mm(x, w.t()), False, 2 * 5 * 8 * 6),
    ("matmul", (8, 6), lambda x, w: x[:, None] @ w, True, 2 * 5 * 8 * 6),
    ("matmul left", (6, 8), lambda x, w: w @ x.T, False, 2 * 5 * 8 * 6),
    ("matmul of .T", (6, 8), lambda x, w: x @ w.T, False, 2 * 5 * 8 * 6),
    ("matmul of transpose", (6, 8), lambda x, w: x @ w.transpose(0, 1), False, 2 * 5 * 8 * 6),
    ("slices", (12, 8), lambda x, w: F.linear(x, w[:6]) + F.linear(x, w[6:]), False, 4 * 5 * 8 * 6),
    ("chunk", (12, 8), lambda x, w: sum(F.linear(x, c) for c in w.chunk(2)), False, 4 * 5 * 8 * 6),
    ("select", (2, 6, 8), lambda x, w: F.linear(x, w[1]), False, 2 * 5 * 8 * 6),
]


@pytest.mark.parametrize(
    ("shape", "call", "transposed", "flops"),
    [row[1:] for row in MATRICES],
    ids=[row[0] for row in MATRICES],
)
def test_matrices(
    shape: tuple[int, ...], call: Callable[[Tensor, Tensor], Tensor], transposed: bool, flops: int
) -> None:
    row = only(found(Calls(shape, call), 5, 8))
    assert (row.key, row.shape, row.transposed, row.kernel) == ("w", shape, transposed, 1)
    assert row.flops == flops
    assert {use.phase for use in row.uses} == {"train", "eval"}


CONVOLUTIONS = [
    # 2 x output elements x in channels / groups x kernel
    (nn.Conv1d(4, 6, 3), (2, 4, 9), (6, 4, 3), 2 * 2 * 6 * 7 * 4 * 3),
    (nn.Conv1d(4, 6, 3, padding="same"), (2, 4, 9), (6, 4, 3), 2 * 2 * 6 * 9 * 4 * 3),
    (nn.Conv2d(4, 8, 3, groups=2), (2, 4, 5, 5), (8, 2, 3, 3), 2 * 2 * 8 * 9 * 2 * 9),
    (nn.Conv2d(8, 8, 3, groups=8), (2, 8, 5, 5), (8, 1, 3, 3), 2 * 2 * 8 * 9 * 9),
    (nn.Conv3d(2, 4, (1, 3, 1)), (2, 2, 4, 4, 4), (4, 2, 1, 3, 1), 2 * 2 * 4 * 32 * 2 * 3),
    # 2 x input elements x out channels / groups x kernel
    (nn.ConvTranspose1d(4, 6, 3), (2, 4, 9), (4, 6, 3), 2 * 2 * 4 * 9 * 6 * 3),
    (nn.ConvTranspose2d(4, 6, 2, groups=2), (2, 4, 5, 5), (4, 3, 2, 2), 2 * 2 * 4 * 25 * 3 * 4),
    (nn.ConvTranspose3d(2, 4, 2), (2, 2, 3, 3, 3), (2, 4, 2, 2, 2), 2 * 2 * 2 * 27 * 4 * 8),
]


@pytest.mark.parametrize(("layer", "size", "shape", "flops"), CONVOLUTIONS, ids=str)
def test_convolutions(
    layer: nn.Module, size: tuple[int, ...], shape: tuple[int, ...], flops: int
) -> None:
    row = only(found(layer, *size))
    kernel = torch.Size(shape[2:]).numel()
    assert (row.key, row.shape, row.transposed, row.kernel) == ("weight", shape, False, kernel)
    assert row.flops == flops
    assert row.groups == only(match(layer)).groups == layer.groups


def test_a_shared_module_is_one_match_with_all_its_uses() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(8, 8)
            self.b = self.a

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(self.a(x)))

    row = only(found(Shared(), 2, 8))
    assert (row.key, row.aliases) == ("a.weight", ("b.weight",))
    assert [use.phase for use in row.uses] == ["train"] * 3 + ["eval"] * 3


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 8)
        self.body = nn.Linear(8, 8)
        self.head = nn.Linear(8, 50, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.body(self.table(ids)))


def test_a_tied_embedding_is_refused_and_offered() -> None:
    report = match(trace(Tied(), (torch.ones(2, 3, dtype=torch.int64),)))
    assert [row.key for row in report.matches] == ["body.weight"]
    (refusal,) = report.refusals
    assert refusal.reason.startswith("is tied to an embedding of 50 rows: cores would cost")
    assert refusal.offer is not None
    assert refusal.offer.aliases == ("head.weight",)
    module_level = match(Tied()).refusals[0]
    assert (module_level.key, module_level.offer is None) == ("table.weight", False)


def test_linear_and_embedding_without_a_tie() -> None:
    model = Tied()
    model.head.weight = nn.Parameter(torch.randn(50, 8))
    report = match(trace(model, (torch.ones(2, 3, dtype=torch.int64),)))
    assert [row.key for row in report.matches] == ["body.weight", "head.weight"]
    assert [(r.key, r.reason) for r in report.refusals] == [
        ("table.weight", "is a lookup table, not a matrix factor")
    ]


def frozen() -> nn.Module:
    return nn.Linear(8, 8).requires_grad_(False)


def no_grad(inner: nn.Module) -> nn.Module:
    class NoGrad(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                return self.inner(x)

    return NoGrad()


class Unused(nn.Linear):
    def __init__(self) -> None:
        super().__init__(8, 8)
        self.spare = nn.Conv2d(3, 3, 3)


class Recurrent(nn.Module):
    def __init__(self, kind: Callable[..., nn.RNNBase]) -> None:
        super().__init__()
        self.rnn = kind(8, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x[:, None])[0]


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8, dtype=torch.complex64)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.to(torch.complex64)).real


class Buffered(nn.Module):
    def __init__(self, factor: float | None) -> None:
        super().__init__()
        self.register_buffer("w", torch.randn(8, 8))
        self._factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.w if self._factor is None else self.w * self._factor)


@torch.library.custom_op("opdf_tests::grouped_mm_fallback", mutates_args=())
def _product(x: Tensor, w: Tensor) -> Tensor:
    return x @ w


@_product.register_fake
def _shape(x: Tensor, w: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], w.shape[1])


class LowRank(nn.Module):
    """A weight that is the product of two."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(8, 2)), nn.Parameter(torch.randn(2, 8))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.a @ self.b)


class Quantised(nn.Module):
    """An integer weight as a Parameter, read as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(8, 8, dtype=torch.int64), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x.to(torch.int64) @ self.w


REFUSALS = [
    (frozen(), {"weight": r"is frozen \(requires_grad=False\): extra parameters would not"}),
    (Unused(), {"spare.weight": "is not read by forward with these inputs"}),
    (Recurrent(nn.LSTM), {"rnn.weight_ih_l0": "recurrent", "rnn.weight_hh_l0": "recurrent"}),
    (Recurrent(nn.GRU), {"rnn.weight_ih_l0": "recurrent", "rnn.weight_hh_l0": "recurrent"}),
    (Complex(), {"linear.weight": "has dtype torch.complex64, only dense floating-point"}),
    (Quantised(), {"w": "has dtype torch.int64, only dense floating-point"}),
    (Buffered(None), {"w": "is a buffer or constant read by aten.linear.default"}),
    (Buffered(2.0), {"w": "is a buffer or constant read by aten.linear.default"}),
    (Calls((8,), lambda x, w: x @ w), {"w": "has one axis: there is nothing to factorise"}),
    (
        Calls((8, 6), lambda x, w: torch.ops.opdf_tests.grouped_mm_fallback(x, w)),
        {"w": r"is read by opdf_tests.grouped_mm_fallback.default, a product that this tool does"},
    ),
    (LowRank(), {"a": "is multiplied with another weight", "b": "is multiplied with another"}),
    (nn.Sequential(nn.Linear(8, 0), nn.Linear(0, 2)), {"0.weight": "empty", "1.weight": "empty"}),
]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("model", "wanted"), REFUSALS, ids=[str(i) for i in range(len(REFUSALS))])
def test_refusals(model: nn.Module, wanted: dict[str, str]) -> None:
    report = found(model, 2, 8)
    reasons = {row.key: row.reason for row in report.refusals}
    assert set(reasons) == set(wanted), str(report)
    for key, reason in wanted.items():
        assert re.search(reason, reasons[key]), reasons[key]
    assert not set(wanted) & {row.key for row in report.matches}


def test_a_nested_graph_is_looked_into() -> None:
    row = only(found(no_grad(nn.Linear(8, 8)), 2, 8))
    assert (row.key, row.flops) == ("inner.weight", 2 * 2 * 8 * 8)


@pytest.mark.slow
def test_attention_products_are_not_weights() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    report = found(layer, 2, 5, 16)
    assert [row.key for row in report.matches] == [
        "self_attn.in_proj_weight",
        "self_attn.out_proj.weight",
        "linear1.weight",
        "linear2.weight",
    ]
    assert not report.refusals


def test_a_weight_read_in_training_only_is_a_match() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.side = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.body(x)
            return self.side(x) if self.training else x

    report = found(Auxiliary(), 2, 8)
    uses = {row.key: {use.phase for use in row.uses} for row in report.matches}
    assert uses == {"body.weight": {"train", "eval"}, "side.weight": {"train"}}


def test_tables_read_in_text_html_and_json() -> None:
    report = found(nn.Sequential(nn.Linear(8, 8), Buffered(None)), 2, 8)
    assert str(report).splitlines() == [
        "weight    op      shape  parameters  FLOPs",
        "--------  ------  -----  ----------  -----",
        "0.weight  linear  8x8            64    256",
        "1 matches, 1 refusals",
        "1.w is a buffer or constant read by aten.linear.default, not a trainable Parameter",
        "found from the graph (rung dynamic)",
    ]
    value = report.to_json()
    assert value["schema"] == "opdf-match/1"
    assert value["matches"][0]["key"] == "0.weight"
    assert value["refusals"][0]["shape"] == [8, 8]
    assert "<code>1.w</code>" in report._repr_html_()


@pytest.mark.filterwarnings("ignore")
def test_packed_integers_are_refused() -> None:
    floats = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    packed = torch.ao.quantization.quantize_dynamic(floats, {nn.Linear})
    reasons = {row.key: row.reason for row in match(packed).refusals}
    assert list(reasons) == ["0.weight", "1.weight"]
    assert all("packed as quantised integers" in reason for reason in reasons.values())


def test_a_plan_of_a_module_does_not_move_its_power_iteration() -> None:
    model = torch.nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8)).train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert [row.key for row in match(model).matches] == ["parametrizations.weight.original"]
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())


class Backwards(nn.Module):
    """A Linear whose weight is read from the other side as well, with its columns going out."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 12, bias=False)
        self.weight = nn.Parameter(torch.randn(12, 12))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.layer.weight @ self.weight


def test_a_layer_keeps_its_rows_whichever_way_its_weight_is_read():
    report = match(trace(Backwards(), (torch.randn(3, 12),)))
    assert {m.key: m.transposed for m in report.matches} == {
        "layer.weight": False,
        "weight": True,
    }


class Written(nn.Module):
    """Weights that forward itself writes, whole and by a view; and one that it only reads."""

    def __init__(self) -> None:
        super().__init__()
        self.whole, self.view, self.copy = (nn.Linear(8, 8, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.whole.weight.mul_(0.5)
            self.view.weight[0].clamp_(-0.1, 0.1)
            late = (2 * self.copy.weight).add_(1)
        return self.whole(x) + self.view(x) + self.copy(x) + late.sum()


def test_a_weight_that_forward_writes_is_refused():
    report = match(trace(Written(), (torch.randn(3, 8),)))
    assert [m.key for m in report.matches] == ["copy.weight"]
    reason = "is written in place by forward ({}): cores would not follow"
    assert {r.key: r.reason for r in report.refusals} == {
        "whole.weight": reason.format("aten.mul_.Tensor"),
        "view.weight": reason.format("aten.clamp_.default"),
    }
