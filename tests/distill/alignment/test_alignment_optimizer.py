"""The alignment inside Overparam: once per step, on whatever loop and layout."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from aligned_students import MAP, aligned_optimizer, batch, network, train, weights
from torch import Tensor, nn

import opdf_compile as opdf

CLOSE = 1e-12


def teacher() -> nn.Sequential:
    return network(seed=1)


def alignment(weight: float = 0.5, pairs: Any = MAP) -> opdf.CoreAlignment:
    return opdf.CoreAlignment(teacher(), pairs, weight=weight)


def close(left: list[Tensor], right: list[Tensor], limit: float = CLOSE) -> bool:
    return all((a - b).norm() <= limit * b.norm() for a, b in zip(left, right, strict=True))


def by_hand(steps: int, weight: float) -> list[Tensor]:
    """A bare program, autograd for the alignment, torch's AdamW: no line of the code under test."""
    student = network()
    program = opdf.hoist(student, opdf.plan(student, cores=3))
    fixed = alignment(weight)
    fixed.attach(program)
    inner = torch.optim.AdamW(program.parameters(), lr=1e-2, weight_decay=0.0)
    for step in range(steps):
        inner.zero_grad()
        student(batch(step)).square().mean().backward()
        program.backward()
        errors = [
            sum((program.cores(key)[k] - t).square().mean() for k, t in kept.items()) / len(kept)
            for key, kept in fixed.targets.items()
        ]
        (weight * sum(errors) / len(errors)).backward()
        inner.step()
        program.refresh()
    return weights(student)


def run(steps: int = 4, fixed: opdf.CoreAlignment | None = None, **options: Any) -> list[Tensor]:
    student = network()
    optimizer = aligned_optimizer(student, fixed, **{"weight_decay": 0.0, **options})
    train(student, optimizer, steps)
    return weights(student)


@pytest.mark.parametrize("batched", [False, True])
def test_a_step_is_that_of_the_sum_of_both_losses(batched: bool) -> None:
    found = run(4, alignment(), batched=batched)
    assert close(found, by_hand(4, 0.5))
    assert not close(found, by_hand(4, 0.505), 1e-7)
    assert not close(found, run(4), 1e-4)


def test_with_weight_zero_it_trains_as_without_but_for_the_gauge() -> None:
    """SGD does not see an orthogonal change of gauge; AdamW looks at entries and does."""
    options: dict[str, Any] = {"kind": torch.optim.SGD, "lr": 0.1}
    fixed = alignment(0.0)
    assert close(run(4, fixed, **options), run(4, **options))
    assert fixed.last is not None and fixed.last.item() > 0


ALL = [(f"{k}.weight", f"{3 - k}.weight") for k in range(4)]
SOME = [("0.weight", "1.weight"), ("2.weight", "1.weight"), ("3.weight", "3.weight")]


@pytest.mark.parametrize("pairs", [ALL, SOME], ids=["all", "some"])
def test_batches_of_which_all_or_some_rows_are_aligned_are_exact(
    pairs: list[tuple[str, str]],
) -> None:
    students = [nn.Sequential(*(nn.Linear(12, 12) for _ in range(4))).double() for _ in range(2)]
    students[1].load_state_dict(students[0].state_dict())
    other = nn.Sequential(*(nn.Linear(12, 12) for _ in range(4))).double()
    last = []
    for student, batched in zip(students, (False, True), strict=True):
        fixed = opdf.CoreAlignment(other, pairs, weight=100.0)
        optimizer = aligned_optimizer(student, fixed, batched=batched)
        assert any(unit.batched for unit in optimizer.program.units) is batched
        train(student, optimizer, 3)
        last.append(fixed.last)
    assert close(weights(students[1]), weights(students[0]))
    assert close(last[1:], last[:1])


def test_a_batch_that_is_taken_apart_goes_on_aligned() -> None:
    found = []
    for batched in (False, True):
        torch.manual_seed(0)
        student = nn.Sequential(*(nn.Linear(12, 12) for _ in range(4))).double()
        other = nn.Sequential(*(nn.Linear(12, 12) for _ in range(4))).double()
        fixed = opdf.CoreAlignment(other, ALL, weight=100.0)
        optimizer = aligned_optimizer(student, fixed, batched=batched)
        train(student, optimizer, 2)
        student[2].weight.requires_grad_(False)
        train(student, optimizer, 2, first=2)
        assert not any(unit.batched for unit in optimizer.program.units)
        found.append(weights(student))
    assert close(found[1], found[0])


def test_a_weight_without_a_gradient_keeps_its_bits() -> None:
    student = network()
    student[0].weight.requires_grad_(False)
    kept = student[0].weight.detach().clone()
    train(student, aligned_optimizer(student, alignment(100.0)), 2)
    assert torch.equal(student[0].weight, kept)


def test_it_costs_no_forward_and_is_added_once_per_step() -> None:
    halves = []
    for micro in (1, 4):
        student, guide = network(), teacher()
        calls = {"student": 0, "teacher": 0}

        def count(name: str, calls: dict[str, int] = calls) -> Any:
            return lambda *_: calls.__setitem__(name, calls[name] + 1)

        student.register_forward_hook(count("student"))
        guide.register_forward_hook(count("teacher"))
        optimizer = aligned_optimizer(student, opdf.CoreAlignment(guide, MAP, weight=0.5))
        for step in range(3):
            optimizer.zero_grad()
            for rows in batch(step).chunk(micro):
                (student(rows).square().mean() / micro).backward()
            optimizer.step()
        assert calls == {"student": 3 * micro, "teacher": 0}
        halves.append(weights(student))
    assert close(halves[1], halves[0])


def test_a_scaled_loss_changes_nothing() -> None:
    """A power of two is exact, and the alignment is added to gradients without a scale."""
    found = []
    for scale in (1.0, 1024.0):
        student = network(dtype=torch.float32)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        guide = network(seed=1, dtype=torch.float32)
        optimizer = aligned_optimizer(student, opdf.CoreAlignment(guide, MAP))
        for step in range(3):
            optimizer.zero_grad()
            loss = student(batch(step, torch.float32)).square().mean()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        found.append(weights(student))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_closure_gives_the_same_step() -> None:
    student = network()
    optimizer = aligned_optimizer(student, alignment(), weight_decay=0.0)
    for step in range(4):

        def closure(step: int = step) -> Tensor:
            optimizer.zero_grad()
            loss: Tensor = student(batch(step)).square().mean()
            loss.backward()
            return loss

        assert optimizer.step(closure) is not None
    assert close(weights(student), run(4, alignment()))


def test_an_optimizer_that_compares_losses_is_refused() -> None:
    with pytest.raises(opdf.UserError, match="LBFGS compares the losses"):
        aligned_optimizer(network(), alignment(), torch.optim.LBFGS)
    with pytest.raises(opdf.UserError, match="alignment is a float, wanted an opdf.CoreAlignment"):
        aligned_optimizer(network(), 0.5)  # type: ignore[arg-type]


def test_decay_acts_after_the_alignment_and_on_w() -> None:
    """Cores decay by (1 - lr wd)^(1/3) before SGD adds lr dL/dcore, as without an alignment."""
    student = network()
    fixed = alignment()
    optimizer = aligned_optimizer(student, fixed, torch.optim.SGD, lr=0.1, weight_decay=0.5)
    cores = [core.detach().clone() for core in optimizer.program.cores("0.weight")]
    student(batch()).square().mean().backward()
    leaves = [core.clone().requires_grad_() for core in cores]
    composed = torch.einsum("aijb,bklc,cmnd->ikmjln", *leaves).reshape(16, 12)
    pulled = torch.autograd.grad(composed, leaves, student[0].weight.grad)
    optimizer.step()
    factor = (1 - 0.1 * 0.5) ** (1 / 3)
    for k, (core, grad) in enumerate(zip(cores, pulled, strict=True)):
        target = fixed.targets["0.weight"].get(k)
        drawn = 0.0 if target is None else 0.5 * 2 * (core - target) / (2 * 2 * core.numel())
        wanted = factor * core - 0.1 * (grad + drawn)
        assert close([optimizer.program.cores("0.weight")[k].detach()], [wanted])


def test_enough_weight_brings_the_cores_to_the_teachers() -> None:
    student, fixed = network(), alignment(1e3)
    optimizer = aligned_optimizer(student, fixed, torch.optim.Adam, lr=1e-1)
    train(student, optimizer, 1)
    first = fixed.last
    train(student, optimizer, 60, first=1)
    assert first is not None and fixed.last is not None
    assert fixed.last < 1e-2 * first


def test_weights_taken_from_outside_are_aligned_again() -> None:
    student, fixed = network(), alignment()
    optimizer = aligned_optimizer(student, fixed, batched=True)
    train(student, optimizer, 2)
    with torch.no_grad():
        student[0].weight.copy_(network(seed=4)[0].weight)
    other = [core.detach().clone() for core in optimizer.program.cores("2.weight")]
    assert optimizer.absorb() == ("0.weight",)
    # Those of a weight that did not change go on where the optimizer's state left them.
    now = optimizer.program.cores("2.weight")
    assert all(torch.equal(a, b) for a, b in zip(now, other, strict=True))
    fresh = alignment()
    aligned_optimizer(network(seed=4), fresh)
    again = {row.key: row.start for row in fixed.report.rows}
    wanted = {row.key: row.start for row in fresh.report.rows}
    assert again["0.weight"] == pytest.approx(wanted["0.weight"], rel=1e-9)
    errors = [
        (optimizer.program.cores("0.weight")[k] - target).square().mean().item()
        for k, target in fixed.targets["0.weight"].items()
    ]
    assert sum(errors) / 2 == pytest.approx(wanted["0.weight"], rel=1e-9)
    train(student, optimizer, 1, first=2)


def test_a_class_bound_to_a_student_takes_it_again_and_again() -> None:
    student = network()
    kind = opdf.overparam_class(student, opdf.plan(student), alignment=alignment())
    for _ in range(2):
        optimizer = kind(student.parameters(), lr=1e-2)
        train(student, optimizer, 2)
    assert optimizer.alignment is not None and optimizer.alignment.last is not None


def test_its_weight_may_follow_a_schedule() -> None:
    fixed = alignment(0.0)
    student = network()
    optimizer = aligned_optimizer(student, fixed, torch.optim.SGD, lr=0.1)
    train(student, optimizer, 2)
    fixed.weight = 1e3
    before = fixed.last
    train(student, optimizer, 20, first=2)
    assert before is not None and fixed.last is not None and fixed.last < 0.5 * before
