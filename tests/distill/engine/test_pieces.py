"""The order of the examples, the divisors of a step, the schedule, the counters."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from opdf_compile.distill.engine.objective import Divisors, Objective, weighted
from opdf_compile.distill.engine.order import ExampleOrder, shard
from opdf_compile.distill.engine.schedule import share_of_peak
from opdf_compile.distill.losses import HintonKD, TaskLoss, Term, WeightedSum
from opdf_compile.distill.run.counters import Counters
from opdf_compile.errors import ArtefactError, InputError


def test_an_epoch_shows_every_example_once_and_another_order_next_time() -> None:
    order = ExampleOrder(examples=24, batch=4, accumulation=2, seed=3)
    assert order.steps_per_epoch == 3
    epochs = [[i for s in range(3) for b in order.batches(e * 3 + s) for i in b] for e in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(24))
    assert epochs[0] != epochs[1]
    assert order.batches(4) == ExampleOrder(24, 4, 2, 3).batches(4)
    assert order.batches(4) != ExampleOrder(24, 4, 2, 4).batches(4)


def test_a_small_training_part_is_one_step() -> None:
    assert [len(b) for b in ExampleOrder(10, 4, 4, 0).batches(0)] == [4, 4, 2]
    with pytest.raises(InputError, match="has no examples"):
        ExampleOrder(0, 4, 1, 0)


@pytest.mark.parametrize(("size", "ranks"), [(8, 2), (7, 3), (5, 5)])
def test_shards_in_a_row_are_the_batch(size: int, ranks: int) -> None:
    batch = list(range(size))
    assert [i for rank in range(ranks) for i in shard(batch, rank, ranks)] == batch
    with pytest.raises(InputError, match="cannot be shared out over"):
        shard(batch, 0, size + 1)


def parts() -> tuple[nn.Module, WeightedSum, dict[str, Tensor], Tensor]:
    """Rows that masks and ignored labels leave unequal in every piece."""
    student = nn.Linear(5, 3).double()
    terms = {
        "soft": (0.7, Term(HintonKD(2.0), mask="mask")),
        "hard": (0.4, Term(TaskLoss(), labels="labels")),
    }
    labels = torch.arange(16) % 3
    labels[:5] = -100
    batch = {
        "x": torch.randn(16, 5, dtype=torch.float64),
        "mask": torch.arange(16) % 5 != 0,
        "labels": labels,
    }
    return student, WeightedSum(terms), batch, torch.randn(16, 3, dtype=torch.float64)


def test_pieces_of_a_step_add_up_to_the_joined_batch() -> None:
    student, losses, batch, teacher = parts()
    losses({"logits": student(batch["x"])}, {"logits": teacher}, batch).backward()
    wanted = student.weight.grad.clone()
    student.weight.grad = None

    objective = Objective(student, losses, lambda m, b: {"logits": m(b["x"])})
    # Two processes with two batches each: rank 0 has the first and third quarter.
    cut = [slice(4 * place, 4 * place + 4) for place in range(4)]
    pieces = [{name: column[part] for name, column in batch.items()} for part in cut]
    of_rank = {0: (0, 2), 1: (1, 3)}
    seen = []
    for own in of_rank.values():
        first = objective(pieces[own[0]], {"logits": teacher[cut[own[0]]]})
        Divisors(losses.terms, lambda v: seen.append(v) or v)(
            first, [pieces[i] for i in own], False
        )
    added = torch.stack(seen).sum(0)
    for own in of_rank.values():
        divisors = None
        for i in own:
            found = objective(pieces[i], {"logits": teacher[cut[i]]})
            if divisors is None:
                known = Divisors(losses.terms, lambda v: added)
                divisors, told = known(found, [pieces[i] for i in own], False)
                assert not told
            weighted(found, losses.weights, divisors).backward()
    assert torch.allclose(student.weight.grad, wanted, rtol=1e-12, atol=1e-12)
    # The mean of the pieces' own means is something else.
    means = [
        losses({"logits": student(p["x"])}, {"logits": teacher[c]}, p)
        for p, c in zip(pieces, cut, strict=True)
    ]
    student.weight.grad = None
    torch.stack(means).mean().backward()
    assert not torch.allclose(student.weight.grad, wanted, rtol=1e-3)


def test_one_process_that_was_told_to_stop_stops_all() -> None:
    student, losses, batch, teacher = parts()
    pieces = losses.pieces({"logits": student(batch["x"])}, {"logits": teacher}, batch)
    told = Divisors(losses.terms, lambda v: v + torch.eye(len(v))[0])(pieces, [batch], False)[1]
    assert told


def test_a_step_in_which_nothing_counts_divides_by_one() -> None:
    student, losses, batch, teacher = parts()
    empty = {**batch, "mask": torch.zeros(16, dtype=torch.bool)}
    pieces = losses.pieces({"logits": student(batch["x"])}, {"logits": teacher}, empty)
    divisors, _ = Divisors(losses.terms, lambda v: v)(pieces, [empty], False)
    assert divisors["soft"] == 1.0
    assert math.isfinite(float(weighted(pieces, losses.weights, divisors).detach()))


def test_schedules() -> None:
    cosine = [share_of_peak(step, 10, "cosine", 0.2) for step in range(10)]
    assert cosine[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert cosine[6] == pytest.approx(0.5)
    assert all(a > b > 0 for a, b in zip(cosine[2:], cosine[3:], strict=False))
    assert share_of_peak(5, 10, "linear", 0.0) == 0.5
    assert share_of_peak(9, 10, "constant", 0.3) == 1.0
    assert share_of_peak(0, 2, "cosine", 2.5) == pytest.approx(1 / 3)


def test_the_best_is_kept_and_equals_go_to_the_later() -> None:
    progress = Counters()
    kept = []
    for step, value in enumerate([0.5, 0.7, math.nan, 0.7, 0.6], start=1):
        progress.step = step
        if progress.note(value, higher_is_better=True):
            progress.kept_step = step
        kept.append(progress.kept_step)
    assert kept == [1, 2, 2, 4, 4]
    assert (progress.best, progress.best_step, progress.stale) == (0.7, 2, 3)
    lower = Counters(step=1)
    lower.note(3.0, higher_is_better=False)
    assert lower.note(2.0, higher_is_better=False) and not lower.note(2.5, higher_is_better=False)
    with pytest.raises(ArtefactError, match="does not say where its run was"):
        Counters.from_json({"step": 1}, "step-000001")


def test_counters_of_an_earlier_version_are_read() -> None:
    kept = Counters(step=3, best=0.5, best_step=2).to_json()
    assert Counters.from_json({**kept, "peak": 0.1}, "step-000003") == Counters.from_json(kept, "")
    with pytest.raises(ArtefactError, match="does not say where its run was"):
        Counters.from_json({**kept, "summit": 0.1}, "step-000003")
