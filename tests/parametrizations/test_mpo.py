"""The MPO as a parametrization: linear, addmm and convolution weights, there and back."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from opdf_compile.errors import FoldError, InputError, PlanError
from opdf_compile.parametrizations.matrix_spec import WeightForm
from opdf_compile.parametrizations.mpo_spec import MpoSpec
from opdf_compile.parametrizations.registry import registered

MPO = registered("mpo")

# Weight shape, transposed, kernel: the cases that modules bring.
WEIGHTS: dict[str, tuple[tuple[int, ...], bool, int]] = {
    "Linear": ((48, 30), False, 1),
    "addmm operand": ((30, 48), True, 1),
    "Linear, one output": ((1, 30), False, 1),
    "Conv1d": ((16, 6, 5), False, 5),
    "Conv2d": ((16, 6, 3, 3), False, 9),
    "Conv2d, grouped": ((16, 2, 3, 3), False, 9),
    "Conv2d, depthwise": ((16, 1, 3, 3), False, 9),
    "Conv3d": ((4, 3, 2, 2, 2), False, 8),
    "ConvTranspose2d": ((6, 16, 3, 3), False, 9),
}


def random_weight(shape: tuple[int, ...], dtype: str = "float32") -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator).to(getattr(torch, dtype))


def relative_error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.parametrize(("shape", "transposed", "kernel"), WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("cores", [2, 3, 5])
def test_there_and_back(shape: tuple[int, ...], transposed: bool, kernel: int, cores: int) -> None:
    weight = random_weight(shape)
    spec = MPO.propose(WeightForm(shape, transposed=transposed, kernel=kernel), cores=cores)
    tensors = MPO.decompose(weight, spec)
    assert tuple(tuple(core.shape) for core in tensors) == MPO.shapes(spec)
    assert len(tensors) == cores
    assert spec.in_modes[-1] % kernel == 0
    composed = MPO.compose(tensors, spec)
    assert composed.shape == weight.shape
    assert composed.dtype == weight.dtype
    assert composed.is_contiguous()
    assert relative_error(composed, weight) <= 1e-6
    assert relative_error(MPO.compose([tensors[0] * 1.01, *tensors[1:]], spec), weight) > 1e-3


def test_rows_are_out_features_also_where_the_weight_is_stored_transposed() -> None:
    weight = random_weight((48, 30))
    plain = MPO.propose(WeightForm((48, 30)), cores=3)
    stored = MPO.propose(WeightForm((30, 48), transposed=True), cores=3)
    assert (stored.out_modes, stored.in_modes) == (plain.out_modes, plain.in_modes)
    ours = MPO.decompose(weight.mT, stored)
    assert all(torch.equal(a, b) for a, b in zip(ours, MPO.decompose(weight, plain), strict=True))


def test_channels_last_weights_have_the_same_cores() -> None:
    weight = random_weight((16, 6, 3, 3))
    spec = MPO.propose(WeightForm(weight.shape, kernel=9), cores=3)
    other = MPO.decompose(weight.contiguous(memory_format=torch.channels_last), spec)
    assert all(torch.equal(a, b) for a, b in zip(other, MPO.decompose(weight, spec), strict=True))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_dtypes(dtype: str) -> None:
    weight = random_weight((48, 30), dtype)
    spec = MPO.propose(WeightForm(weight.shape, dtype=dtype), cores=3)
    tensors = MPO.decompose(weight, spec)
    cores_are = torch.float64 if dtype == "float64" else torch.float32
    assert MPO.core_dtype(spec) == cores_are
    assert all(core.dtype == cores_are for core in tensors)
    assert MPO.compose(tensors, spec).dtype == weight.dtype
    # What fold does: compose in float64, round once.
    exact = MPO.compose([core.double() for core in tensors], spec.with_dtype("float64"))
    assert exact.dtype == torch.float64
    assert relative_error(exact, weight) <= 2e-7
    if dtype in ("float16", "bfloat16"):
        assert torch.equal(exact.to(weight.dtype), weight)


@pytest.mark.parametrize("name", ["Linear", "addmm operand", "Conv2d"])
def test_the_traced_graph_computes_the_weight_and_its_gradients(name: str) -> None:
    shape, transposed, kernel = WEIGHTS[name]
    weight = random_weight(shape, "bfloat16")
    spec = MPO.propose(
        WeightForm(shape, dtype="bfloat16", transposed=transposed, kernel=kernel), cores=4
    )
    cores = MPO.decompose(weight, spec)
    graph = make_fx(lambda *tensors: MPO.compose(tensors, spec))(*cores)
    assert torch.equal(graph(*cores), MPO.compose(cores, spec))
    targets = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert targets.count("aten._to_copy.default") == 1, "compose ends in one cast"
    assert targets.count("aten.permute.default") == 1
    assert targets.count("aten.mm.default") == 3
    leaves = [core.clone().requires_grad_() for core in cores]
    gradients = torch.autograd.grad(graph(*leaves).float().sum(), leaves)
    wanted = torch.autograd.grad(MPO.compose(leaves, spec).float().sum(), leaves)
    assert all(torch.equal(a, b) for a, b in zip(gradients, wanted, strict=True))


def test_core_names_stand_beside_the_weight() -> None:
    spec = MPO.propose(WeightForm((48, 30)), cores=2)
    assert MPO.core_names("fc.weight", spec) == ("fc.weight_cores.0", "fc.weight_cores.1")


def test_paper_shapes_and_cost() -> None:
    spec = MPO.propose(WeightForm((3072, 768)), cores=5)
    cost = MPO.cost(spec)
    assert (spec.out_modes, spec.in_modes) == ((64, 1, 1, 1, 48), (32, 1, 1, 1, 24))
    assert cost.parameters == 3.25 * 3072 * 768
    assert round(cost.forward_flops / 2e9, 1) == 7.3
    assert cost.step_flops == 3 * cost.forward_flops


shapes = st.one_of(
    st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
    st.tuples(st.integers(1, 600), st.integers(1, 600), st.just(3), st.just(3)),
)


@settings(deadline=None, max_examples=60)
@given(shapes, st.booleans())
def test_candidates_rise_in_added_parameters(shape: tuple[int, ...], transposed: bool) -> None:
    transposed = transposed and len(shape) == 2
    kernel = math.prod(shape[2:])
    specs = MPO.candidates(WeightForm(shape, dtype="float16", transposed=transposed, kernel=kernel))
    added = [MPO.cost(spec).added for spec in specs]
    assert 0 < len(specs) <= 40
    assert added == sorted(set(added))
    for spec in specs:
        assert (spec.shape, spec.dtype, spec.transposed) == (shape, "float16", transposed)
        assert spec.in_modes[-1] % kernel == 0
    for cores in range(2, 11):
        proposed = MPO.propose(
            WeightForm(shape, dtype="float16", transposed=transposed, kernel=kernel), cores=cores
        )
        assert proposed in specs


def test_candidates_leave_no_wide_gap_for_a_layers_of_bert() -> None:
    specs = MPO.candidates(WeightForm((3072, 768)))
    scales = [MPO.cost(spec).parameters / (3072 * 768) for spec in specs]
    assert scales[0] < 1.05
    assert scales[-1] > 6
    assert all(b / a < 1.2 for a, b in zip(scales, scales[1:], strict=False))


@pytest.mark.parametrize(("shape", "transposed", "kernel"), WEIGHTS.values(), ids=WEIGHTS)
def test_infer_reads_the_spec_off_the_cores(
    shape: tuple[int, ...], transposed: bool, kernel: int
) -> None:
    for spec in MPO.candidates(
        WeightForm(shape, dtype="bfloat16", transposed=transposed, kernel=kernel)
    ):
        inferred = MPO.infer(MPO.shapes(spec), WeightForm(shape, "bfloat16", transposed))
        assert inferred == spec


@pytest.mark.parametrize(
    ("core_shapes", "sentence"),
    [
        ([(1, 4, 4, 2), (2, 3, 5, 1)], "do not fit the weight.*out_modes .* multiply to 12"),
        ([(1, 8, 6, 4), (4, 6, 5, 1)], "full bonds want"),
        ([(1, 8, 6), (30, 6, 5, 1)], "cores have 4 axes"),
        ([(1, 48, 30, 1)], "2 to 64 cores are wanted, found 1"),
        ([], "2 to 64 cores are wanted, found 0"),
    ],
)
def test_infer_refuses_what_is_no_chain_of_the_weight(core_shapes: Any, sentence: str) -> None:
    with pytest.raises(FoldError, match=sentence):
        MPO.infer(core_shapes, WeightForm((48, 30)))


Call = Callable[[], object]


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: MPO.propose(WeightForm((5,)), cores=2), PlanError, "two axes or more"),
        (
            lambda: MPO.propose(WeightForm((4, 4)), cores=1),
            PlanError,
            r"shape \[4, 4\]: the number of cores",
        ),
        (lambda: MPO.propose(WeightForm((4, 0)), cores=2), PlanError, "tuple of positive integers"),
        (
            lambda: MPO.propose(WeightForm((4, 4, 3), transposed=True), cores=2),
            PlanError,
            "only a weight with",
        ),
        (
            lambda: MPO.candidates(WeightForm((4, 10), kernel=3)),
            PlanError,
            "no multiple of the kernel",
        ),
        (
            lambda: MPO.propose(WeightForm((4, 4), dtype="int8"), cores=2),
            PlanError,
            "dtype is 'int8'",
        ),
        (
            lambda: MPO.decompose(torch.ones(4, 5), MPO.propose(WeightForm((5, 4)), cores=2)),
            InputError,
            r"shape \[4, 5\] was found, \[5, 4\] is wanted",
        ),
        (
            lambda: MPO.decompose(torch.ones(4, 5) / 0, MPO.propose(WeightForm((4, 5)), cores=2)),
            InputError,
            "20 of 20 entries are NaN or infinite",
        ),
    ],
)
def test_refusals_say_what_was_found(call: Call, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        call()


def test_the_spec_type_is_stated() -> None:
    assert MPO.spec_type is MpoSpec
    assert MPO.name == "mpo"
