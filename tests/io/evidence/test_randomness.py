"""Which outputs of a torch model depend on random numbers: the operators, and where they reach."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.io.evidence.evaluating import gather_check_data
from opdf_compile.io.evidence.randomness import find_draws
from opdf_compile.io.evidence.truth import graph_of

Body = Callable[[Tensor], Tensor]


class Net(nn.Module):
    def __init__(self, body: Body) -> None:
        super().__init__()
        self.inner = Inner(body)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"steady": self.head(x), "body": self.inner(x)}


class Inner(nn.Module):
    def __init__(self, body: Body) -> None:
        super().__init__()
        self.body = body
        self.rnn = nn.LSTM(6, 6, num_layers=2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def views(x: Tensor) -> Tensor:
    noise = torch.zeros(2, 6)
    noise[0].normal_()
    return x + noise.sum()


def halves(x: Tensor) -> Tensor:
    noise = torch.zeros(2, 6)
    left, _ = noise.chunk(2, -1)
    left.uniform_()
    return x + noise.sum()


def sized(x: Tensor) -> Tensor:
    return x + torch.randint(1, 5, (1,)).item()


def without_gradient(x: Tensor) -> Tensor:
    with torch.no_grad():
        return x + torch.rand(6)


def unused(x: Tensor) -> Tensor:
    torch.rand(3)
    return x * 2


def read_before(x: Tensor) -> Tensor:
    noise = torch.zeros(6)
    early = x + noise
    noise.normal_()
    return early


def attended(rate: float) -> Body:
    def body(x: Tensor) -> Tensor:
        q = x[:, None]
        return F.scaled_dot_product_attention(q, q, q, dropout_p=rate)[:, 0]

    return body


def rnn(rate: float, train: bool) -> Body:
    weights = [torch.randn(24, 6) for _ in range(4)]

    def body(x: Tensor) -> Tensor:
        state = x.new_zeros(2, x.shape[0], 6)
        out, _, _ = torch.lstm(
            x[:, None], (state, state), weights, False, 2, rate, train, False, True
        )
        return out[:, 0]

    return body


RANDOM: dict[str, tuple[Body, str]] = {
    "dropout": (lambda x: F.dropout(x, 0.1), "aten.dropout"),
    "dropout in place": (lambda x: F.dropout(x * 2, 0.1, inplace=True), "aten.dropout_"),
    "alpha dropout": (lambda x: F.alpha_dropout(x, 0.1, training=True), "aten.alpha_dropout"),
    "feature dropout": (lambda x: F.dropout1d(x[None], 0.1)[0], "aten.feature_dropout"),
    "randn_like": (lambda x: x + torch.randn_like(x), "aten.randn_like"),
    "rand": (lambda x: x + torch.rand(6), "aten.rand"),
    "normal": (lambda x: torch.normal(x, 1.0), "aten.normal"),
    "bernoulli": (lambda x: torch.bernoulli(x.sigmoid()), "aten.bernoulli"),
    "multinomial": (lambda x: torch.multinomial(x.softmax(-1), 2), "aten.multinomial"),
    "rrelu": (lambda x: F.rrelu(x, training=True), "aten.rrelu"),
    "randperm": (lambda x: x[:, torch.randperm(6)], "aten.randperm"),
    "attention": (attended(0.5), "aten.scaled_dot_product_attention"),
    "rnn": (rnn(0.5, True), "aten.lstm"),
    "a view": (views, "aten.normal_"),
    "a part": (halves, "aten.uniform_"),
    "a number": (sized, "aten.randint"),
    "a nested graph": (without_gradient, "aten.rand"),
}
STEADY: dict[str, Body] = {
    "dropout that is off": lambda x: F.dropout(x, 0.1, training=False),
    "dropout of nothing": lambda x: F.dropout(x, 0.0),
    "rrelu that is off": lambda x: F.rrelu(x, training=False),
    "attention": attended(0.0),
    "rnn in evaluation": rnn(0.5, False),
    "rnn without dropout": rnn(0.0, True),
    "unused": unused,
    "read before the write": read_before,
}


def draws_of(body: Body) -> tuple[dict[str, str], bool]:
    program = torch.export.export(Net(body).eval(), (torch.randn(2, 6),), strict=False)
    found = find_draws(graph_of(program), ["steady", "body"])
    return dict(found.outputs), found.known


@pytest.mark.parametrize("name", RANDOM)
def test_what_draws_is_named_with_its_place(name: str) -> None:
    body, operator = RANDOM[name]
    outputs, _ = draws_of(body)
    assert set(outputs) == {"body"}
    assert outputs["body"].startswith(operator) and "'inner'" in outputs["body"]
    assert "test_randomness.py:" in outputs["body"]


@pytest.mark.parametrize("name", STEADY)
def test_what_does_not_reach_an_output_leaves_it_exact(name: str) -> None:
    outputs, _ = draws_of(STEADY[name])
    assert outputs == {}


@pytest.mark.parametrize("body", [body for body, _ in RANDOM.values()], ids=list(RANDOM))
def test_the_operators_really_draw(body: Body) -> None:
    """The table above is no list of names: each moves torch's generator."""
    before = torch.get_rng_state()
    body(torch.randn(2, 6, generator=torch.Generator().manual_seed(0)))
    assert not torch.equal(before, torch.get_rng_state())


def collected(model: nn.Module, x: Tensor) -> Any:
    traced = opdf.trace(model.eval(), (x,), phases=("eval",))
    names = traced.output_names
    return gather_check_data(
        traced.programs["eval"],
        ((x,), {}),
        axis_names=traced.axis_names,
        output_names=names,
        dtype="float32",
    )


def test_check_data_says_so_and_claims_no_error(caplog: pytest.LogCaptureFixture) -> None:
    data = collected(Net(RANDOM["dropout"][0]), torch.randn(4, 6))
    assert set(data.random) == {"body"}
    assert all(s.error["body"] == float("inf") and s.error["steady"] < 1e-5 for s in data.samples)
    assert "output 'body' depends on random numbers (aten.dropout in 'inner'" in caplog.text


def test_the_callers_generator_is_left_alone() -> None:
    model, x = Net(RANDOM["dropout"][0]), torch.randn(4, 6)
    before = torch.get_rng_state()
    collected(model, x)
    assert torch.equal(before, torch.get_rng_state())


def test_an_operator_without_a_tag_is_found_by_the_generator() -> None:
    @torch.library.custom_op("opdf_tests::untagged_noise", mutates_args=())
    def noise(x: Tensor) -> Tensor:
        return x + torch.randn(x.shape)

    noise.register_fake(torch.empty_like)
    data = collected(Net(noise), torch.randn(4, 6))
    assert set(data.random) == {"steady", "body"}
    assert "does not mark as random" in data.random["body"]
