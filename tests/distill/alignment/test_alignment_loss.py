"""The loss itself: its gradient, its zero, its growth, and that without a gauge it does not grow.

float64, so finite differences of a quadratic are exact up to rounding: the loss is at most 1, its
rounding 1e-15, and the difference of step 1e-4 is off by 1e-15 / 1e-4 = 1e-11.
"""

from __future__ import annotations

from math import sqrt

import pytest
import torch
from aligned_students import MAP, network
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.distill.alignment.pairs import mpo_form
from opdf_compile.tensor.decomposition import decompose
from opdf_compile.tensor.gauge import distance
from opdf_compile.training.hoisted.program import WeightProgram


def attached(
    student: nn.Module, teacher: nn.Module, cores: int = 3, weight: float = 0.7
) -> tuple[WeightProgram, opdf.CoreAlignment]:
    program = opdf.hoist(student, opdf.plan(student, cores=cores))
    alignment = opdf.CoreAlignment(teacher, MAP, weight=weight)
    alignment.attach(program)
    return program, alignment


def written_out(program: WeightProgram, alignment: opdf.CoreAlignment) -> float:
    """The loss by its definition."""
    total = 0.0
    for key, kept in alignment.targets.items():
        cores = program.cores(key)
        errors = [((cores[k] - target) ** 2).mean().item() for k, target in kept.items()]
        total += sum(errors) / len(errors)
    return total / len(alignment.targets)


def zero_gradients(program: WeightProgram) -> None:
    for unit in program.units:
        for core in unit.storage:
            core.grad = torch.zeros_like(core)


def gauged(program: WeightProgram, seed: int = 3) -> None:
    """Put random invertible matrices on every bond."""
    torch.manual_seed(seed)
    for entry in program.plan.entries:
        cores = [core.detach().clone() for core in program.cores(entry.key)]
        for k in range(len(cores) - 1):
            size = cores[k].shape[3]
            turn = torch.eye(size, dtype=torch.float64) + 0.5 * torch.randn(size, size).double()
            cores[k] = cores[k] @ turn
            cores[k + 1] = torch.einsum("ab,bijc->aijc", torch.linalg.inv(turn), cores[k + 1])
        program.fill(dict(zip(entry.core_names, cores, strict=True)))


@pytest.mark.parametrize("cores", [2, 3, 5])
def test_the_gradient_is_that_of_finite_differences(cores: int) -> None:
    program, alignment = attached(network(), network(seed=1), cores)
    zero_gradients(program)
    alignment.add_gradients(program)
    assert alignment.last is not None and alignment.last.shape == ()
    assert alignment.last.item() == pytest.approx(written_out(program, alignment), rel=1e-12)
    step = 1e-4
    for key, kept in alignment.targets.items():
        for k, core in enumerate(program.cores(key)):
            grad = core.grad
            assert grad is not None
            if k not in kept:
                assert torch.count_nonzero(grad) == 0  # The central core is in no sum.
                continue
            inner = [place for place in kept if 0 < place < cores - 1]
            assert torch.count_nonzero(grad) > 0 or k in inner
            for place in (0, core.numel() // 2, core.numel() - 1):
                flat = core.detach().view(-1)
                before = flat[place].item()
                values = []
                for shift in (step, -step):
                    flat[place] = before + shift
                    values.append(alignment.weight * written_out(program, alignment))
                flat[place] = before
                slope = (values[0] - values[1]) / (2 * step)
                assert grad.view(-1)[place].item() == pytest.approx(slope, rel=1e-6, abs=1e-10)


def test_a_gradient_that_is_off_by_one_per_cent_would_be_seen() -> None:
    program, alignment = attached(network(), network(seed=1))
    zero_gradients(program)
    alignment.add_gradients(program)
    core, target = program.cores("0.weight")[0], alignment.targets["0.weight"][0]
    wanted = 0.7 * 2 * (core - target).detach() / (2 * 2 * core.numel())
    assert torch.allclose(core.grad, wanted, rtol=1e-12, atol=0)
    assert not torch.allclose(1.01 * core.grad, wanted, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("cores", [2, 3, 5])
def test_equal_weights_have_loss_zero_in_any_gauge(cores: int) -> None:
    student = network()
    program = opdf.hoist(student, opdf.plan(student, cores=cores))
    gauged(program)
    alignment = opdf.CoreAlignment(network(), MAP)
    before = {e.key: program.cores(e.key)[0].detach().clone() for e in program.plan.entries}
    alignment.attach(program)
    # Squares of rounding errors: of cores of size 1, float64, 16 summands.
    assert written_out(program, alignment) <= 1e-24
    unaligned = sum(float((before[k] - t[0]).square().mean()) for k, t in alignment.targets.items())
    assert unaligned > 1e-2


def test_the_weights_keep_their_bits_and_the_cores_still_make_them() -> None:
    student = network()
    before = student.state_dict()
    kept = {name: value.clone() for name, value in before.items()}
    program, _alignment = attached(student, network(seed=1))
    assert all(torch.equal(kept[name], value) for name, value in student.state_dict().items())
    assert program.changed() == ()
    program.refresh()
    for name, value in student.state_dict().items():
        assert (value - kept[name]).norm() <= 1e-13 * kept[name].norm()


def test_in_float32_the_cores_make_the_weights_to_1e_6() -> None:
    student = network(dtype=torch.float32)
    kept = student[0].weight.detach().clone()
    program, _alignment = attached(student, network(seed=1, dtype=torch.float32))
    program.refresh()
    assert (student[0].weight - kept).norm() <= 1e-6 * kept.norm()


def near_degenerate(plan: opdf.Plan, student: nn.Module) -> Tensor:
    """A weight whose rearranged matrix has singular values 1 + 1e-9 k."""
    entry = plan.entries[0]
    spec = mpo_form(entry)
    assert spec is not None
    cores = list(decompose(torch.randn(*entry.spec.shape, dtype=torch.float64), spec.chain))
    bond = spec.chain.bonds[1]
    values = 1 + 1e-9 * torch.arange(bond, dtype=torch.float64)
    left = torch.linalg.qr(cores[0].flatten(0, 2)).Q * values.sqrt()
    right = torch.linalg.qr(cores[2].flatten(1).mT).Q.mT * values.sqrt()[:, None]
    outs, ins = spec.out_modes, spec.in_modes
    whole = (left @ right).reshape(outs[0], ins[0], outs[2], ins[2]).permute(0, 2, 1, 3)
    return whole.reshape(entry.spec.shape)


def test_the_loss_grows_continuously_with_the_distance_and_unaligned_it_jumps() -> None:
    """Of an outer core N MSE <= || |R_s| - |R_t| ||_1 <= sqrt(2 D) ||W_s - W_t||_F.

    The first step is Powers and Stoermer 1970 for (R R^T)^1/2, the second Araki and Yamagami 1981.
    """
    student = nn.Sequential(nn.Linear(16, 16, bias=False)).double()
    plan = opdf.plan(student, cores=3)
    weight = near_degenerate(plan, student)
    direction = torch.randn_like(weight)
    direction /= direction.norm()
    spec = mpo_form(plan.entries[0])
    assert spec is not None
    bound = sqrt(2 * spec.chain.bonds[1]) / min(
        core.numel() for core in decompose(weight, spec.chain)[::2]
    )
    scale = float(decompose(weight, spec.chain)[0].square().mean())
    losses = []
    for size in (0.0, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0):
        with torch.no_grad():
            student[0].weight.copy_(weight + size * direction)
        program = opdf.hoist(student, plan)
        teacher = {"0.weight": weight}
        alignment = opdf.CoreAlignment(teacher, [("0.weight", "0.weight")])
        alignment.attach(program)
        losses.append(written_out(program, alignment))
        assert losses[-1] <= bound * size + 1e-24
    assert losses == sorted(losses)
    # Here all singular values are near 1, and the loss grows with the square of the distance.
    assert losses[2] == pytest.approx(100 * losses[1], rel=0.05)
    assert losses[1] < 1e-12 * scale

    close = decompose(weight + 1e-7 * direction, spec.chain)
    exact = dict(enumerate(decompose(weight, spec.chain)))
    del exact[1]
    assert distance(close, exact) > 0.1 * scale


def test_the_teacher_is_only_read() -> None:
    teacher = network(seed=1, dtype=torch.bfloat16)
    kept = [p.detach().clone() for p in teacher.parameters()]
    program, alignment = attached(network(dtype=torch.float32), teacher)
    zero_gradients(program)
    alignment.add_gradients(program)
    assert all(torch.equal(a, b) for a, b in zip(kept, teacher.parameters(), strict=True))
    assert all(p.grad is None for p in teacher.parameters())
    for key, kept_cores in alignment.targets.items():
        for k, target in kept_cores.items():
            like = program.cores(key)[k]
            assert (target.dtype, target.device) == (like.dtype, like.device)
            assert target.grad_fn is None and not target.requires_grad


def test_inline_it_is_the_same_loss_and_the_same_gradient() -> None:
    student, teacher = network(), network(seed=1)
    program, hoisted = attached(network(), teacher)
    zero_gradients(program)
    hoisted.add_gradients(program)
    traced = opdf.trace(student, (torch.randn(2, 12, dtype=torch.float64),))
    expanded = opdf.expand(traced, opdf.plan(traced, cores=3))
    inline = opdf.CoreAlignment(teacher, MAP, weight=0.7)
    with pytest.raises(opdf.UserError, match="attach"):
        inline.loss(expanded)
    inline.attach(expanded)
    inline.loss(expanded).backward()
    assert inline.last is not None and hoisted.last is not None
    assert inline.last.item() == pytest.approx(hoisted.last.item(), rel=1e-9)
    for key, kept in hoisted.targets.items():
        for k in kept:
            # The gauges agree too: both are nearest to the same cores.
            found, wanted = expanded.cores(key)[k].grad, program.cores(key)[k].grad
            assert found is not None and wanted is not None
            assert (found - wanted).norm() <= 1e-9 * wanted.norm()
    saved = {name: value.clone() for name, value in inline.state_dict().items()}
    again = opdf.CoreAlignment(network(seed=2), MAP, weight=0.7)
    again.attach(expanded)
    again.load_state_dict(saved)
    assert all(torch.equal(value, saved[name]) for name, value in again.state_dict().items())
