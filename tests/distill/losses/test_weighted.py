"""The weighted sum: its parts, names of what it reads, exact means over processes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from opdf_compile.distill.losses import (
    CorrelationLoss,
    HiddenStateLoss,
    HintonKD,
    SkewKL,
    TaskLoss,
    Term,
    WeightedSum,
)
from opdf_compile.errors import InputError


def outputs(rows: int) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    student = {"logits": torch.randn(rows, 4, dtype=torch.float64, requires_grad=True)}
    teacher = {"logits": torch.randn(rows, 4, dtype=torch.float64)}
    batch = {"labels": torch.randint(4, (rows,)), "keep": torch.randint(2, (rows,))}
    batch["keep"][0] = 1
    return student, teacher, batch


def make() -> WeightedSum:
    return WeightedSum(
        {
            "soft": (0.9, Term(HintonKD(2.0), mask="keep")),
            "hard": (0.1, TaskLoss()),
            "skew.all": (0.5, SkewKL()),
        }
    )


def test_the_sum_and_its_parts() -> None:
    student, teacher, batch = outputs(6)
    loss = make()
    total = loss(student, teacher, batch)
    z, t = student["logits"], teacher["logits"]
    parts = {
        "soft": HintonKD(2.0)(z, t, mask=batch["keep"]),
        "hard": TaskLoss()(z, batch["labels"]),
        "skew.all": SkewKL()(z, t),
    }
    assert list(loss.parts) == list(parts)
    for name, part in parts.items():
        assert torch.equal(loss.parts[name], part.detach())
        assert not loss.parts[name].requires_grad
    weighted = 0.9 * parts["soft"] + 0.1 * parts["hard"] + 0.5 * parts["skew.all"]
    assert torch.isclose(total, weighted, rtol=1e-12)
    total.backward()
    assert z.grad is not None
    loss.weights["hard"] = 0.0  # A schedule of one's own.
    changed = loss(student, teacher, batch)
    assert torch.isclose(changed, weighted - 0.1 * parts["hard"], rtol=1e-12)


@pytest.mark.parametrize("splits", [(4, 2), (1, 5), (2, 2, 2)])
def test_processes_make_the_mean_of_the_joined_batch(splits: tuple[int, ...]) -> None:
    """Gradients of the processes are averaged afterwards, as DDP does."""
    student, teacher, batch = outputs(6)
    batch["keep"] = torch.tensor([1, 1, 1, 0, 0, 1])
    whole = make()(student, teacher, batch)
    whole.backward()
    z = student["logits"]
    assert z.grad is not None

    def cut(values: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        parts = [value.detach().split(splits) for value in values.values()]
        return [dict(zip(values, part, strict=True)) for part in zip(*parts, strict=True)]

    shards = list(zip(cut(student), cut(teacher), cut(batch), strict=True))
    loss = make()
    counts: dict[str, Tensor | float] = {}
    for shard in shards:
        for name, (_sum, count) in loss.pieces(*shard).items():
            counts[name] = counts.get(name, 0) + count / len(shards)
    grads, totals, naive = [], [], []
    for mine, theirs, rows in shards:
        mine["logits"].requires_grad_(True)
        total = loss(mine, theirs, rows, counts=counts)
        total.backward()
        grads.append(mine["logits"].grad)
        totals.append(total.detach())
        naive.append(loss(mine, theirs, rows).detach())
    assert torch.isclose(torch.stack(totals).mean(), whole.detach(), rtol=1e-12)
    averaged = torch.cat([g for g in grads if g is not None]) / len(shards)
    assert torch.allclose(averaged, z.grad, rtol=1e-10, atol=1e-14)
    # The wrong answer: a mean of means.
    assert not torch.isclose(torch.stack(naive).mean(), whole.detach(), rtol=1e-6)


def test_outputs_may_be_tensors_tuples_and_those_of_transformers() -> None:
    from transformers.modeling_outputs import BaseModelOutput

    states = tuple(torch.randn(2, 3, 4) for _ in range(3))
    student = BaseModelOutput(last_hidden_state=states[0], hidden_states=states)
    teacher = BaseModelOutput(last_hidden_state=states[1], hidden_states=states[::-1])
    term = Term(HiddenStateLoss(), "hidden_states.2", "hidden_states.0", mask="attention_mask")
    mask = torch.ones(2, 3, dtype=torch.int64)
    assert term(student, teacher, {"attention_mask": mask}).item() == 0
    other = Term(HiddenStateLoss(), "hidden_states.1", "hidden_states.0")
    assert torch.equal(other(student, teacher), HiddenStateLoss()(states[1], states[2]))
    flat = {"hidden_states.2": states[0]}
    assert torch.equal(
        Term(HiddenStateLoss(), "hidden_states.2", "last_hidden_state")(flat, teacher),
        HiddenStateLoss()(states[0], states[1]),
    )
    z, t = torch.randn(2, 4), torch.randn(2, 4)
    assert torch.equal(WeightedSum({"kd": (1.0, HintonKD())})(z, t), HintonKD()(z, t))


def test_torchs_own_losses_are_terms_too() -> None:
    z, t = torch.randn(2, 4), torch.randn(2, 4)
    loss = WeightedSum({"mse": (2.0, nn.MSELoss())})
    assert torch.isclose(loss(z, t), 2 * nn.functional.mse_loss(z, t))
    assert {name: float(count) for name, (_s, count) in loss.pieces(z, t).items()} == {"mse": 1}


def test_learned_projections_are_its_parameters() -> None:
    loss = WeightedSum({"hidden": (1.0, HiddenStateLoss(4, 6, "learned"))})
    (weight,) = loss.parameters()
    loss(torch.randn(3, 4), torch.randn(3, 6)).backward()
    assert weight.grad is not None
    again = WeightedSum({"hidden": (1.0, HiddenStateLoss(4, 6, "learned"))})
    again.load_state_dict(loss.state_dict())


def test_a_batch_without_a_counted_row_gives_zero() -> None:
    student, teacher, batch = outputs(3)
    loss = WeightedSum({"soft": (1.0, Term(HintonKD(), mask="keep"))})
    total = loss(student, teacher, {"keep": torch.zeros(3, dtype=torch.int64)})
    total.backward()
    assert total.item() == 0
    assert torch.all(torch.as_tensor(student["logits"].grad) == 0)
    del batch


def test_what_needs_a_teacher() -> None:
    assert make().needs_teacher
    hard = WeightedSum({"hard": (1.0, TaskLoss())})
    assert not hard.needs_teacher
    z, y = torch.randn(3, 4), torch.randint(4, (3,))
    assert torch.equal(hard(z, None, {"labels": y}), TaskLoss()(z, y))
    assert WeightedSum({"c": (1.0, CorrelationLoss())}).needs_teacher


MESSAGES = {
    "no terms": (lambda: WeightedSum({}), "no terms"),
    "negative": (lambda: WeightedSum({"a": (-1.0, HintonKD())}), "a: -1.0"),
    "nan": (lambda: WeightedSum({"a": (float("nan"), HintonKD())}), "a: nan"),
    "no teacher": (lambda: make()(outputs(2)[0], None, outputs(2)[2]), "'logits' of the teacher"),
    "no column": (
        lambda: make()(*outputs(2)[:2], {"labels": torch.zeros(2).long()}),
        "reads 'keep' of the batch, found labels, logits",
    ),
    "no such part": (
        lambda: Term(HintonKD(), "hidden.3")({"hidden": (torch.zeros(2),)}, torch.zeros(2)),
        "'hidden.3' of the student, found hidden",
    ),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_errors_say_what_is_wrong(name: str) -> None:
    call, pattern = MESSAGES[name]
    with pytest.raises(InputError, match=pattern):
        call()


def test_it_prints_weights_and_names() -> None:
    shown = str(make())
    assert "0.9 x soft" in shown and "student logits, labels labels" in shown
    assert "mask keep" in shown
