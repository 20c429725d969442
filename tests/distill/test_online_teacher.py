"""A teacher with side paths: at the start itself, then trained beside frozen weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from opdf_compile.distill import OnlineTeacher, online_teacher
from opdf_compile.errors import InputError, PlanError


class Attention(nn.Module):
    """Three projections by hand, a shared one, and a dropout that eval leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(6, 6)
        self.key = nn.Linear(6, 6, bias=False)
        self.out = nn.Linear(6, 3)
        self.dropout = nn.Dropout(0.5)

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        scores = self.query(tokens) @ self.key(tokens).transpose(-1, -2)
        mixed = self.dropout(torch.softmax(scores, -1)) @ self.query(tokens)
        return {"logits": self.out(mixed)}


def factors(online: OnlineTeacher, key: str) -> list[nn.Parameter]:
    """A and B of a weight."""
    return list(online.paths[key.replace(".", "/")].parameters())


@pytest.fixture
def teacher() -> nn.Module:
    """In float64, in eval mode."""
    torch.manual_seed(0)
    return Attention().double().eval().requires_grad_(False)


def test_it_begins_as_the_teacher(teacher: nn.Module) -> None:
    """To the bit, also for another number of examples; the teacher is not changed."""
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    tokens = torch.randn(5, 4, 6, dtype=torch.float64)

    online = online_teacher(teacher, (tokens[:2],), rank=2)

    assert torch.equal(online(tokens)["logits"], teacher(tokens)["logits"])
    assert online.keys == ("query.weight", "key.weight", "out.weight")
    after = teacher.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_it_computes_weights_plus_products(teacher: nn.Module) -> None:
    """The oracle: the same module whose weights are W + B A; both uses of a weight get the path."""
    tokens = torch.randn(3, 4, 6, dtype=torch.float64)
    online = online_teacher(teacher, (tokens,), rank=2)
    for factor in online.parameters():
        nn.init.normal_(factor)
    moved = {}
    for key in online.keys:
        down, up = factors(online, key)
        moved[key] = teacher.get_parameter(key) + up @ down

    wanted = torch.func.functional_call(teacher, moved, (tokens,))["logits"]

    torch.testing.assert_close(online(tokens)["logits"], wanted, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(wanted, teacher(tokens)["logits"])


def test_gradients_reach_the_factors_alone(teacher: nn.Module) -> None:
    """By finite differences; the frozen weights get none."""
    tokens = torch.randn(2, 3, 6, dtype=torch.float64)
    online = online_teacher(teacher, (tokens,), rank=1, include=["out.weight"])
    down, up = factors(online, "out.weight")
    nn.init.normal_(up)

    def loss(_down: Tensor, _up: Tensor) -> Tensor:
        return online(tokens)["logits"].square().sum()

    assert torch.autograd.gradcheck(loss, (down, up))
    loss(down, up).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert [name for name, _ in online.named_parameters()] == [
        "paths.out/weight.0",
        "paths.out/weight.1",
    ]


def test_half_weights_have_float32_factors() -> None:
    """Which compute in the weight's own dtype."""
    teacher = nn.Linear(4, 4).bfloat16()
    tokens = torch.randn(2, 4, dtype=torch.bfloat16)

    online = online_teacher(teacher, (tokens,))

    assert {factor.dtype for factor in online.parameters()} == {torch.float32}
    assert online(tokens).dtype == torch.bfloat16


def test_a_path_is_no_larger_than_its_weight(teacher: nn.Module) -> None:
    """Rank 8 of a weight with 3 rows is 3."""
    online = online_teacher(teacher, (torch.randn(2, 3, 6, dtype=torch.float64),))

    assert [tuple(factor.shape) for factor in factors(online, "out.weight")] == [(3, 6), (3, 3)]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"rank": 0}, InputError, "wanted a number from 1 on"),
        ({"include": ["nothing.*"]}, PlanError, "names none of the 3 weights"),
        ({"exclude": ["*"]}, InputError, "none of the teacher's 3 Linear weights is left"),
    ],
)
def test_what_cannot_be_chosen(
    teacher: nn.Module, options: dict[str, object], error: type[Exception], words: str
) -> None:
    """One sentence each."""
    with pytest.raises(error, match=words):
        online_teacher(teacher, (torch.randn(2, 3, 6, dtype=torch.float64),), **options)
