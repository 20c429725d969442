"""WeightProgram: gradients, refreshes, states and folds, against oracles of their own."""

from __future__ import annotations

import copy
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import opdf_compile as opdf
from opdf_compile.errors import DeviceError, FoldError, InputError
from opdf_compile.tensor.composition import contraction_order

BATCHED = pytest.mark.parametrize("batched", [False, True])


class Twins(nn.Sequential):
    """Two layers of one form, a convolution of another, a BatchNorm."""

    def __init__(self) -> None:
        super().__init__(
            nn.Linear(12, 12), nn.Linear(12, 12), nn.Unflatten(1, (4, 3)), nn.Conv1d(4, 6, 2),
            nn.BatchNorm1d(6),
        )  # fmt: skip


KEYS = ("0.weight", "1.weight", "3.weight")


def program_of(model: nn.Module, cores: int = 3, **options: Any) -> opdf.WeightProgram:
    return opdf.hoist(model, opdf.plan(model, cores=cores, min_size=1), **options)


def batch() -> Tensor:
    return torch.randn(5, 12, generator=torch.Generator().manual_seed(4))


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {key: model.get_parameter(key).detach().clone() for key in KEYS}


def grads(program: opdf.WeightProgram) -> list[Tensor | None]:
    return [None if p.grad is None else p.grad.clone() for p in program.parameters()]


# Gradients.


def pulled_by_hand(cores: list[np.ndarray], cotangent: np.ndarray) -> list[np.ndarray]:
    """dL/dT_k = sum over everything else of dL/dW and the other cores; one einsum each."""
    count = len(cores)
    axes = [[3 * k, 3 * k + 1, 3 * k + 2, 3 * k + 3] for k in range(count)]
    shape = [core.shape[1] for core in cores] + [core.shape[2] for core in cores]
    matrix = [3 * k + 1 for k in range(count)] + [3 * k + 2 for k in range(count)]
    found = []
    for k in range(count):
        operands: list[Any] = [cotangent.reshape(shape), matrix]
        for other in range(count):
            if other != k:
                operands += [cores[other], axes[other]]
        ends = [axis for axis in axes[k] if axis not in (0, 3 * count)]
        value = np.einsum(*operands, ends, optimize=True)
        found.append(value.reshape(cores[k].shape))
    return found


@BATCHED
@pytest.mark.parametrize("cores", [2, 3, 5])
def test_the_gradients_of_the_cores_are_their_einsums(batched: bool, cores: int) -> None:
    model = Twins().double()
    program = program_of(model, cores, batched=batched)
    program.refresh()
    given = {}
    for key in KEYS:
        parameter = model.get_parameter(key)
        parameter.grad = given[key] = torch.randn_like(parameter)
    assert set(program.backward()) == set(KEYS)
    assert all(model.get_parameter(key).grad is None for key in KEYS)
    for key in KEYS:
        values = [core.detach().numpy() for core in program.cores(key)]
        wanted = pulled_by_hand(values, given[key].numpy().reshape(given[key].shape[0], -1))
        for found, value in zip(core_grads(program, key), wanted, strict=True):
            np.testing.assert_allclose(found.numpy(), value, rtol=1e-11, atol=1e-12)


def core_grads(program: opdf.WeightProgram, key: str) -> list[Tensor]:
    (unit,) = [unit for unit in program.units if key in unit.keys]
    row = unit.keys.index(key)
    found = [core.grad for core in unit.storage]
    assert all(grad is not None for grad in found)
    return [grad[row] if unit.batched else grad for grad in found if grad is not None]


@BATCHED
def test_pulling_twice_adds_and_a_pull_without_gradients_does_nothing(batched: bool) -> None:
    model = Twins().double()
    program = program_of(model, batched=batched)
    program.refresh()
    model(batch().double()).pow(2).sum().backward()
    program.backward()
    once = grads(program)
    assert program.backward() == ()
    for left, right in zip(grads(program), once, strict=True):
        assert left is not None and right is not None and torch.equal(left, right)
    model.zero_grad()
    model(batch().double()).pow(2).sum().backward()
    program.backward()
    for key in KEYS:
        assert model.get_parameter(key).grad is None
    cores = [core for unit in program.units for core in unit.storage]
    for core, before in zip(cores, once, strict=False):
        assert core.grad is not None and before is not None
        torch.testing.assert_close(core.grad, 2 * before, rtol=1e-12, atol=1e-12)


def test_a_weight_without_a_gradient_is_left_out() -> None:
    model = Twins()
    program = program_of(model)
    program.refresh()
    model[1](torch.randn(2, 12)).sum().backward()
    assert program.backward() == ("1.weight",)
    assert all(core.grad is None for core in program.cores("0.weight"))
    assert all(core.grad is not None for core in program.cores("1.weight"))


def test_in_a_batch_it_counts_as_zero_unless_none_of_the_batch_has_one() -> None:
    model = Twins()
    program = program_of(model, batched=True)
    program.refresh()
    model[1](torch.randn(2, 12)).sum().backward()
    assert program.backward() == ("1.weight",)
    assert all(not grad.any() for grad in core_grads(program, "0.weight"))
    assert all(grad.any() for grad in core_grads(program, "1.weight"))
    (conv,) = [unit for unit in program.units if unit.keys == ("3.weight",)]
    assert all(core.grad is None for core in conv.storage)


def test_the_first_pull_needs_no_refresh_and_a_moved_core_is_seen() -> None:
    model = Twins().double()
    one, other = program_of(model), program_of(copy.deepcopy(model))
    other.refresh()
    for program in (one, other):
        program.module(batch().double()).pow(2).sum().backward()
        program.backward()
    for left, right in zip(grads(one), grads(other), strict=True):
        assert left is not None and right is not None
        torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-10)
    # A core is written to between refresh and pull: what was kept belongs to another core.
    with torch.no_grad():
        one.cores("0.weight")[0].mul_(2.0)
    one.zero_grad()
    cotangent = torch.randn(12, 12).double()
    model.get_parameter("0.weight").grad = cotangent
    one.backward()
    values = [core.detach().numpy() for core in one.cores("0.weight")]
    wanted = pulled_by_hand(values, cotangent.numpy())
    for found, value in zip(core_grads(one, "0.weight"), wanted, strict=True):
        np.testing.assert_allclose(found.numpy(), value, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_a_refresh_in_a_block_without_gradients_can_be_pulled_through(context: Any) -> None:
    model = Twins()
    program = program_of(model)
    with context():
        program.refresh()
    model(batch()).sum().backward()
    assert set(program.backward()) == set(KEYS)


def test_zero_grad_clears_all_of_it() -> None:
    model = Twins()
    program = program_of(model, batched=True)
    model(batch()).sum().backward()
    program.backward()
    model(batch()).sum().backward()
    assert any(p.grad is not None for p in model.parameters())
    program.zero_grad(set_to_none=False)
    found = [*grads(program), *(p.grad for p in model.parameters())]
    assert all(not grad.any() for grad in found if grad is not None)
    assert any(grad is not None for grad in found)
    program.zero_grad()
    assert all(grad is None for grad in grads(program))
    assert all(p.grad is None for p in model.parameters())


# Memory.


def saved_by(program: opdf.WeightProgram) -> list[weakref.ref[Tensor]]:
    """Refresh, and what autograd saved that is no core."""
    kept: list[weakref.ref[Tensor]] = []
    storages = {core.data_ptr() for unit in program.units for core in unit.storage}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in storages:
            kept.append(weakref.ref(tensor))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        program.refresh()
    return kept


def alive(kept: list[weakref.ref[Tensor]]) -> int:
    """Entries that are still in memory; two views of one product count once."""
    sizes = {t.data_ptr(): t.numel() for ref in kept if (t := ref()) is not None}
    return sum(sizes.values())


def test_between_refresh_and_pull_lives_what_the_order_says_and_nothing_after() -> None:
    model = Twins()
    program = program_of(model, 5)
    kept = saved_by(program)
    specs: list[Any] = [entry.spec for entry in program.plan.entries]
    wanted = sum(contraction_order(s.chain.bonds, s.chain.products).saved for s in specs)
    assert alive(kept) == wanted > 0
    model(batch()).sum().backward()
    program.backward()
    assert alive(kept) == 0


def test_recompute_keeps_nothing_and_gives_the_same_gradients() -> None:
    model = Twins()
    one, other = program_of(model), program_of(copy.deepcopy(model), recompute=True)
    one.refresh()
    assert saved_by(other) == []
    for program in (one, other):
        program.module(batch()).pow(2).sum().backward()
        program.backward()
    for left, right in zip(grads(one), grads(other), strict=True):
        assert left is not None and right is not None and torch.equal(left, right)


# The forward.


class Seen(TorchDispatchMode):
    """Every operator that runs, with the shapes it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append(f"{func}{[tuple(a.shape) for a in args if isinstance(a, Tensor)]}")
        return func(*args, **(kwargs or {}))


def ops(model: nn.Module) -> list[str]:
    with Seen() as seen, torch.no_grad():
        model(batch())
    return seen.calls


def test_the_eval_forward_is_the_plain_modules_own() -> None:
    model = Twins().eval()
    wanted = ops(copy.deepcopy(model))
    program = program_of(model)
    program.refresh()
    assert ops(model) == wanted
    assert len(wanted) > 4
    # The inline form does more, so the measure sees compose.
    traced = opdf.trace(model, (batch(),))
    expanded = opdf.expand(traced, opdf.plan(traced, cores=3, min_size=1)).eval()
    assert len(ops(expanded)) > len(wanted)


def test_autocast_around_a_refresh_does_not_degrade_the_weights() -> None:
    one, other = Twins(), Twins()
    other.load_state_dict(one.state_dict())
    program_of(one).refresh()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        program = program_of(other)
        program.refresh()
        other(batch()).sum().backward()
        program.backward()
    for key in KEYS:
        assert torch.equal(one.get_parameter(key), other.get_parameter(key))
        assert {g.dtype for g in core_grads(program, key)} == {torch.float32}


@BATCHED
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_weights_have_float32_cores_and_are_rounded_once(
    dtype: torch.dtype, batched: bool
) -> None:
    model = nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 12)).to(dtype)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    program = program_of(model, batched=batched)
    program.refresh()
    for key in ("0.weight", "1.weight"):
        assert {core.dtype for core in program.cores(key)} == {torch.float32}
        # Cores carry 24 bits, so rounding back finds the very same weight.
        assert torch.equal(model.get_parameter(key), before[key])
    with torch.no_grad():
        for key in ("0.weight", "1.weight"):
            for core in program.cores(key):
                core.mul_(1.1)
    program.refresh()
    folded = opdf.fold(program)
    for key in ("0.weight", "1.weight"):
        found, exact = model.get_parameter(key), folded.get_parameter(key)  # type: ignore[union-attr]
        assert found.dtype == exact.dtype == dtype
        # float32 sums may fall on the other side of a rounding boundary: one unit, in few places.
        gap = (found.double() - exact.double()).abs()
        assert (gap <= torch.finfo(dtype).eps * exact.double().abs()).all()
        assert (gap > 0).float().mean() < 0.02
    model(torch.randn(3, 12, dtype=dtype)).sum().backward()
    program.backward()
    assert {g.dtype for g in core_grads(program, "0.weight")} == {torch.float32}


# State.


@BATCHED
def test_a_state_goes_from_one_program_to_another(batched: bool) -> None:
    model = Twins()
    program = program_of(model, batched=batched)
    with torch.no_grad():
        for key in KEYS:
            for core in program.cores(key):
                core.add_(torch.randn_like(core) / 8)
    program.refresh()
    state = {name: value.clone() for name, value in program.state_dict().items()}
    names = {f"{key}_cores.{k}" for key in KEYS for k in range(3)}
    assert set(state) == names | {f"{key}_checksum" for key in KEYS}
    # Batched or not is the reader's own choice; the names are the same.
    fresh = Twins()
    other = program_of(fresh, batched=not batched)
    other.load_state_dict(state)
    assert set(other.changed()) == set(KEYS), "the weights of that state are not loaded yet"
    fresh.load_state_dict(model.state_dict())
    assert other.changed() == ()
    for key in KEYS:
        for left, right in zip(program.cores(key), other.cores(key), strict=True):
            assert torch.equal(left, right)
    wanted = weights(model)
    other.refresh()
    for key in KEYS:
        torch.testing.assert_close(fresh.get_parameter(key).detach(), wanted[key])


def test_a_state_that_does_not_fit_changes_nothing() -> None:
    program = program_of(Twins())
    before = {name: value.clone() for name, value in program.state_dict().items()}
    wrong = {name: value * 2 for name, value in before.items()}
    wrong["3.weight_cores.2"] = torch.zeros(1)
    with pytest.raises(InputError, match=r"holds '3.weight_cores.2' with shape \(1,\), wanted \("):
        program.load_state_dict(wrong)
    del wrong["3.weight_cores.2"]
    with pytest.raises(InputError, match=r"'3.weight_cores.2' with shape None, wanted .*this plan"):
        program.load_state_dict(wrong)
    for name, value in program.state_dict().items():
        assert torch.equal(value, before[name])


@BATCHED
def test_absorb_takes_the_weights_as_they_are(batched: bool) -> None:
    model = Twins()
    program = program_of(model, batched=batched)
    program.refresh()
    model(batch()).sum().backward()
    program.backward()
    kept = [core.clone() for core in program.cores("1.weight")]
    with torch.no_grad():
        model[0].weight.normal_()
    wanted = weights(model)
    assert program.absorb() == ("0.weight",)
    assert all(torch.equal(model.get_parameter(key), wanted[key]) for key in KEYS), "bit for bit"
    for core, before in zip(program.cores("1.weight"), kept, strict=True):
        assert torch.equal(core, before), "what did not change keeps its cores"
    assert program.absorb() == ()
    if batched:
        assert all(not grad.any() for grad in core_grads(program, "0.weight"))
    else:
        assert all(core.grad is None for core in program.cores("0.weight"))
    assert all(grad.any() for grad in core_grads(program, "1.weight"))
    program.refresh()
    for key in KEYS:
        torch.testing.assert_close(model.get_parameter(key).detach(), wanted[key])


def test_absorb_of_nan_is_a_sentence_and_changes_nothing() -> None:
    model = Twins()
    program = program_of(model)
    before = {name: value.clone() for name, value in program.state_dict().items()}
    with torch.no_grad():
        model[0].weight.normal_()
        model[3].weight[0, 0, 0] = float("nan")
    with pytest.raises(InputError, match="'3.weight' cannot be factorised: .*repair the weight"):
        program.absorb()
    for name, value in program.state_dict().items():
        assert torch.equal(value, before[name])
    assert program.changed() == ("0.weight", "3.weight")


def test_cores_of_an_unknown_weight_are_a_sentence() -> None:
    with pytest.raises(InputError, match="no cores of '0.bias' are held here; the 3 weights whose"):
        program_of(Twins()).cores("0.bias")


# Fold.


def test_fold_composes_in_float64_and_takes_everything_else_bit_for_bit() -> None:
    model = Twins()
    program = program_of(model)
    model.train()(batch())
    with torch.no_grad():
        for key in KEYS:
            program.cores(key)[1].mul_(1.5)
    program.refresh()
    folded = opdf.fold(program)
    assert type(folded) is Twins
    assert folded is not model
    assert list(folded.state_dict()) == list(model.state_dict())
    for name, value in folded.state_dict().items():
        if name in KEYS:
            chain = [core.detach().double() for core in program.cores(name)]
            joined = chain[0]
            for core in chain[1:]:
                joined = torch.einsum("aijb,bklc->aikjlc", joined, core).reshape(
                    1, joined.shape[1] * core.shape[1], joined.shape[2] * core.shape[2], -1
                )
            assert torch.equal(value, joined.reshape(value.shape).float())
        else:
            assert torch.equal(value, model.state_dict()[name])
    assert folded[4].num_batches_tracked == 1


def test_a_module_that_was_cast_since_is_folded_with_one_rounding() -> None:
    model = nn.Sequential(nn.Linear(64, 64))
    program = program_of(model)
    model.half()
    folded = opdf.fold(program, source="cores")
    exact = torch.from_numpy(product_of(program.cores("0.weight")))
    found: Tensor = folded.get_parameter("0.weight")  # type: ignore[union-attr]
    assert torch.equal(found, exact.half())
    # The checker can fail: float32 would have been another value.
    assert not torch.equal(found.float(), exact.float())


def product_of(cores: tuple[Tensor, ...]) -> np.ndarray:
    chain = [core.detach().double().numpy() for core in cores]
    joined = chain[0]
    for core in chain[1:]:
        joined = np.einsum("aijb,bklc->aikjlc", joined, core).reshape(
            1, joined.shape[1] * core.shape[1], joined.shape[2] * core.shape[2], core.shape[3]
        )
    return joined[0, :, :, 0]


def test_fold_into_fills_a_given_student() -> None:
    model = Twins()
    program = program_of(model)
    given = Twins()
    parameters = {name: id(p) for name, p in given.named_parameters()}
    assert opdf.fold(program, into=given) is given
    assert {name: id(p) for name, p in given.named_parameters()} == parameters
    wanted = opdf.fold(program)
    assert isinstance(wanted, nn.Module)
    for name, value in given.state_dict().items():
        assert torch.equal(value, wanted.state_dict()[name])
    other = nn.Sequential(nn.Linear(12, 12))
    before = other[0].weight.clone()
    with pytest.raises(FoldError, match="the module to fill and the student differ in '1.bias'"):
        opdf.fold(program, into=other)
    assert torch.equal(other[0].weight, before)


@pytest.mark.parametrize("wrong", ["core", "W", 1])
def test_an_unknown_source_is_refused(wrong: Any) -> None:
    program = program_of(Twins())
    with pytest.raises(FoldError, match=rf"source is {wrong!r}, wanted 'cores', 'weights'"):
        opdf.fold(program, source=wrong)
    with pytest.raises(FoldError, match=rf"source is {wrong!r}, wanted one of 'cores'"):
        program.refresh(wrong)


def test_cores_with_nan_are_not_folded() -> None:
    program = program_of(Twins())
    with torch.no_grad():
        program.cores("3.weight")[0].fill_(float("nan"))
    with pytest.raises(FoldError, match="the cores of '3.weight' give NaN or infinity"):
        opdf.fold(program)


# Devices.


def test_a_student_that_was_moved_is_a_sentence() -> None:
    model = Twins()
    program = program_of(model)
    before = [core.clone() for core in program.cores("0.weight")]
    model.to("meta")
    sentence = (
        r"the weight '0.weight' is on meta, its cores are on cpu; move the student first and build "
        r"the optimizer \(or hoist\) afterwards"
    )
    with pytest.raises(DeviceError, match=sentence):
        program.refresh(source="cores")
    with pytest.raises(DeviceError, match=sentence):
        program.backward()
    assert all(torch.equal(a, b) for a, b in zip(program.cores("0.weight"), before, strict=True))


def test_a_parameter_that_was_taken_away_is_a_sentence() -> None:
    model = Twins()
    program = program_of(model)
    del model[0].weight
    with pytest.raises(InputError, match="the student's '0.weight' is no Parameter any more"):
        program.refresh()
