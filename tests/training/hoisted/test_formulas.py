"""Units by formulas against the graph of compose under autograd, and values that are compared."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.errors import WeightsChanged
from opdf_compile.training.hoisted.checksums import checksum, checksums
from opdf_compile.training.hoisted.formulas import FormulaUnit
from opdf_compile.training.hoisted.records import Records
from opdf_compile.training.hoisted.unit import Unit, Way


def student(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """Two weights of one form, one of several blocks, and a grouped kernel."""
    torch.manual_seed(3)
    layers = (
        nn.Linear(24, 24),
        nn.Linear(24, 24),
        nn.Linear(24, 9000),
        nn.Conv1d(4, 6, 3, groups=2),
    )
    return nn.Sequential(*layers).to(dtype)


def program(form: str, batched: Any = True, **options: Any) -> opdf.WeightProgram:
    model = student(options.pop("dtype", torch.float64))
    plan = opdf.plan(model, parametrization=form, min_size=1)
    made = opdf.hoist(model, plan, batched=batched, **options)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for unit in made.units:
            for core in unit.trained:
                core.add_(torch.randn(core.shape, generator=generator).to(core), alpha=0.3)
    return made


def gradients(units: Any, pull: Any) -> list[Tensor | None]:
    """What the cores get, twice in a row: gradients add up."""
    generator = torch.Generator().manual_seed(5)
    for _ in range(2):
        for unit in units:
            sent = {
                bound.key: torch.randn(bound.entry.spec.shape, generator=generator)
                for bound in unit.weights
            }
            way = Way()
            pull(unit, {k: v.to(unit.weights[0].parameter.dtype) for k, v in sent.items()}, way)
            way.go()
    found = [core.grad for unit in units for core in unit.storage]
    for unit in units:
        unit.drop_grad(unit.keys)
    return found


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("form", ["gains", "md"])
def test_weights_and_gradients_are_those_of_the_graph(form: str, batched: bool) -> None:
    units = program(form, batched).units
    assert all(isinstance(unit, FormulaUnit) for unit in units)
    assert any(unit.batched for unit in units) is batched
    for unit in units:
        wanted = {k: v.clone() for k, v in Unit.refresh(unit, keep=False).items()}
        found = unit.refresh(keep=True)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    pairs = zip(gradients(units, FormulaUnit.pull), gradients(units, Unit.pull), strict=True)
    for found_grad, wanted_grad in pairs:
        if wanted_grad is None:
            assert found_grad is None, "a norm that is held has none"
            continue
        assert found_grad is not None
        # Sums of 9000 products, each within half an ulp of one.
        torch.testing.assert_close(found_grad, wanted_grad, rtol=1e-12, atol=1e-12)
        assert float(wanted_grad.abs().max()) > 0.1, "the control"


@pytest.mark.parametrize("form", ["gains", "md"])
def test_a_weight_of_half_precision_is_cast_once(form: str) -> None:
    made = program(form, dtype=torch.bfloat16)
    wanted = {k: v for unit in made.units for k, v in Unit.refresh(unit, keep=False).items()}
    made.refresh("cores")
    for key, value in wanted.items():
        assert torch.equal(made.module.get_parameter(key), value)
    made.require_unchanged()


def test_who_waits_for_autograd_is_called() -> None:
    made = program("gains", False)
    seen: list[Tensor] = []
    first = made.units[0].storage[0]
    first.register_post_accumulate_grad_hook(seen.append)
    made.refresh("cores")
    weight = made.module.get_parameter(made.units[0].keys[0])
    weight.grad = torch.ones_like(weight)
    made.backward()
    assert seen == [first] and first.grad is not None


@pytest.mark.parametrize("recompute", [False, True])
def test_what_is_kept_is_compared_and_let_go(recompute: bool) -> None:
    made = program("gains", recompute=recompute)
    made.refresh("cores")
    kept = {key for unit in made.units for key in unit.kept()}
    assert kept == (set() if recompute else set(made.owned()))
    assert made.changed() == ()
    twin = copy.deepcopy(made)
    key = made.owned()[1]
    weight = made.module.get_parameter(key)
    weight.data.view(-1)[5] = weight.data.view(-1)[5].nextafter(torch.tensor(9.0).double())
    assert made.changed() == (key,)
    with pytest.raises(WeightsChanged, match=key):
        made.refresh()
    assert twin.changed() == () and not any(unit.kept() for unit in twin.units)
    assert made.absorb() == (key,)
    assert made.changed() == ()


@pytest.mark.parametrize("copying", [False, True])
def test_records_compare_bits_and_take_checksums_from_elsewhere(copying: bool) -> None:
    # Whole words of 8 bytes, an odd number of 4, and rows that lie apart.
    weights = {
        "a": torch.zeros(3, 4),
        "b": torch.full((3, 3), torch.nan),
        "c": torch.ones(4, 6)[:, :4],
    }
    records = Records(copying=copying)
    records.take(weights.items(), {})
    sums = records.checksums()
    assert all(torch.equal(sums[key], checksum(value)) for key, value in weights.items())
    records.take(weights.items(), {key: value.clone() for key, value in weights.items()})
    again = records.checksums()
    assert all(torch.equal(sums[key], again[key]) for key in sums)
    assert records.differing(weights.items()) == [False, False, False]
    weights["a"][1, 2] = -0.0
    assert records.differing(weights.items()) == [True, False, False]
    for key in "bc":
        weights[key][1, 2] = 7.0
    assert records.differing(weights.items()) == [True, True, True]
    assert records.differing([("b", weights["b"].double())]) == [True]
    other = Records(copying=copying)
    other.take(weights.items(), {})
    records.expect(other.checksums())
    assert records.differing(weights.items()) == [False, False, False]


def test_a_small_program_copies_its_weights_and_a_larger_one_sums_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    summed: list[int] = []

    def counting(tensors: Iterable[Tensor]) -> list[Tensor]:
        found = list(tensors)
        summed.append(len(found))
        return checksums(found)

    monkeypatch.setattr("opdf_compile.training.hoisted.records.checksums", counting)

    def sums(width: int, **options: Any) -> int:
        summed.clear()
        student = nn.Sequential(nn.Linear(width, width), nn.Linear(width, width))
        program = opdf.hoist(student, opdf.plan(student, cores=2), **options)
        program.refresh()
        assert program.changed() == ()
        return sum(summed)

    # Two weights of 4 bytes an entry: 1 MiB is the most.
    assert sums(362) == sums(8, recompute=True) == 0
    # As they are found, when a refresh checks them, as they are written, and when changed() asks.
    assert sums(363) == 4 * 2
