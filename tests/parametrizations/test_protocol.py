"""What every registered parametrization must do, each with a check that can fail."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from opdf_compile.errors import FoldError, InputError, PlanError
from opdf_compile.parametrizations import registry
from opdf_compile.parametrizations.matrix_spec import WeightForm
from opdf_compile.parametrizations.registry import registered
from opdf_compile.training.hoisted.recomputing import keeping_nothing

NAMES = (
    "delta",
    "do_conv",
    "gains",
    "md",
    "mpo",
    "orepa",
    "powerprop",
    "shared",
    "spectral",
    "svd",
    "wide",
)

# Weight shape, transposed, kernel, row_axes: the cases that modules bring.
WEIGHTS: dict[str, tuple[tuple[int, ...], bool, int, int]] = {
    "Linear": ((48, 30), False, 1, 1),
    "addmm operand": ((30, 48), True, 1, 1),
    "Linear, one output": ((1, 30), False, 1, 1),
    "prime sizes": ((23, 37), False, 1, 1),
    "Conv1d": ((16, 6, 5), False, 5, 1),
    "Conv2d": ((16, 6, 3, 3), False, 9, 1),
    "Conv2d, depthwise": ((16, 1, 3, 3), False, 9, 1),
    "ConvTranspose2d": ((6, 16, 3, 3), False, 9, 1),
    "stack of experts": ((3, 12, 20), False, 1, 2),
}
# Of the same 48 x 30 numbers as "Linear", for what takes kernels only.
KERNEL = ((48, 5, 3, 2), False, 6, 1)
KERNELS_ONLY = ("do_conv", "orepa")
# FLOPs per entry of the weight that are in no matrix product.
SUMS = {"delta": 1, "spectral": 1, "do_conv": 1, "orepa": 7}
named = pytest.mark.parametrize("name", NAMES)


def takes(name: str, form: tuple[Any, ...]) -> bool:
    return name not in KERNELS_ONLY or form[2] > 1


def of_each(*cases: str) -> pytest.MarkDecorator:
    """Each name with each of these weights that it takes."""
    rows = [(name, case) for name in NAMES for case in cases if takes(name, WEIGHTS[case])]
    made = [pytest.param(name, WEIGHTS[case], id=f"{name}, {case}") for name, case in rows]
    return pytest.mark.parametrize(("name", "form"), made)


of_weights = of_each(*WEIGHTS)
# One of each kind, and another for those that take no matrix.
of_kinds = of_each("Linear", "addmm operand", "Conv2d", "Conv2d, depthwise", "stack of experts")


def example(name: str) -> tuple[Any, ...]:
    """The form of a 48 x 30 weight that it takes."""
    return KERNEL if name in KERNELS_ONLY else WEIGHTS["Linear"]


def test_these_are_the_registered_ones() -> None:
    cored = tuple(name for name in registry.registered_names() if not registered(name).metric)
    assert cored == NAMES


def weight(form: tuple[Any, ...], dtype: str = "float32") -> WeightForm:
    shape, transposed, kernel, row_axes = form
    return WeightForm(shape, dtype, transposed, row_axes, kernel)


def usual(name: str, form: tuple[Any, ...], dtype: str = "float32") -> Any:
    return registered(name).propose(weight(form, dtype), cores=registered(name).usual_cores)


def candidates(name: str, form: tuple[Any, ...], dtype: str = "float32") -> tuple[Any, ...]:
    return registered(name).candidates(weight(form, dtype))


def random(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def error_of(name: str, weight: Tensor, spec: Any) -> float:
    """Relative error of expanding, in the weight's own dtype and in float64; the worse."""
    tensors = registered(name).decompose(weight, spec)
    wide = registered(name).compose([t.double() for t in tensors], spec.with_dtype("float64"))
    norm = weight.double().norm().clamp(min=torch.finfo(torch.float64).tiny)
    core = spec.with_dtype(str(registered(name).core_dtype(spec)).removeprefix("torch."))
    errors = [
        (made.double() - weight.double()).norm() / norm
        for made in (wide, registered(name).compose(tensors, core))
    ]
    return float(max(errors))


@of_weights
def test_there_and_back(name: str, form: tuple[Any, ...]) -> None:
    weight, spec = random(form[0]), usual(name, form)
    tensors = registered(name).decompose(weight, spec)
    assert tuple(tuple(t.shape) for t in tensors) == tuple(registered(name).shapes(spec))
    assert len(registered(name).core_names("a.weight", spec)) == len(tensors)
    assert registered(name).core_names("a.weight", spec)[0] == "a.weight_cores.0"
    composed = registered(name).compose(tensors, spec)
    assert (composed.shape, composed.dtype) == (weight.shape, weight.dtype)
    assert composed.is_contiguous()
    assert error_of(name, weight, spec) <= 1e-6
    # The last tensor of some starts without an effect, or with a small one; no weight reads md's.
    places = {"md": 2, "delta": 0, **dict.fromkeys(KERNELS_ONLY, 0)}
    place = places.get(name, len(tensors) - 1)
    wrong = registered(name).compose(
        [t * 1.01 if k == place else t for k, t in enumerate(tensors)], spec
    )
    assert (wrong - weight).norm() > 1e-3 * weight.norm(), "the control"
    assert not any(t.requires_grad for t in tensors)
    assert all(t.is_contiguous() for t in tensors)


HARD: dict[str, Callable[[], Tensor]] = {
    "zero": lambda: torch.zeros(24, 36),
    "constant": lambda: torch.full((24, 36), 0.3),
    "identity": lambda: torch.eye(24, 36),
    "rank deficient": lambda: random((24, 2)) @ random((2, 36), 1),
    "sparse": lambda: random((24, 36)) * (random((24, 36), 1) > 1),
    "tiny": lambda: random((24, 36)) * 1e-30,
    "huge": lambda: random((24, 36)) * 1e30,
    "wide range": lambda: random((24, 36)) * 10 ** random((24, 36), 1).mul(6),
}


@named
@pytest.mark.parametrize("case", HARD)
def test_invariant_1_hard_weights(name: str, case: str) -> None:
    form = ((24, 4, 3, 3), False, 9, 1) if name in KERNELS_ONLY else ((24, 36), False, 1, 1)
    weight = HARD[case]().reshape(form[0])
    for spec in candidates(name, form)[::3]:
        tensors = registered(name).decompose(weight, spec)
        assert all(bool(torch.isfinite(t).all()) for t in tensors)
        assert error_of(name, weight, spec) <= 1e-6
        leaves = [t.clone().requires_grad_() for t in tensors]
        registered(name).compose(leaves, spec).sum().backward()
        grads = [leaf.grad for leaf in leaves]
        assert all(g is not None and bool(torch.isfinite(g).all()) for g in grads)
        # Only powerprop's zeros have no gradient; it says so.
        moves = any(bool((g != 0).any()) for g in grads if g is not None)
        assert moves or (name, case) == ("powerprop", "zero")


@named
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_dtypes(name: str, dtype: str) -> None:
    form = example(name)
    weight = random(form[0]).to(getattr(torch, dtype))
    spec = usual(name, form, dtype)
    tensors = registered(name).decompose(weight, spec)
    wanted = torch.float64 if dtype == "float64" else torch.float32
    assert registered(name).core_dtype(spec) == wanted
    assert {t.dtype for t in tensors} == {wanted}
    assert registered(name).compose(tensors, spec).dtype == weight.dtype
    exact = registered(name).compose([t.double() for t in tensors], spec.with_dtype("float64"))
    assert exact.dtype == torch.float64
    assert (exact - weight.double()).norm() <= 2e-7 * weight.double().norm()
    if dtype in ("float16", "bfloat16"):
        assert torch.equal(exact.to(weight.dtype), weight), "fold gives the same bits"


@named
def test_the_same_weight_gives_the_same_tensors(name: str) -> None:
    weight, spec = random(example(name)[0]), usual(name, example(name))
    first = registered(name).decompose(weight, spec)
    torch.randn(100)
    again = registered(name).decompose(weight.clone(), spec)
    assert all(map(torch.equal, first, again))
    other = registered(name).decompose(weight * 1.01, spec)
    assert not all(map(torch.equal, first, other)), "the control"


@of_weights
def test_json_and_infer(name: str, form: tuple[Any, ...]) -> None:
    shape, transposed, _kernel, _axes = form
    for spec in (*candidates(name, form, "bfloat16")[::4], usual(name, form, "bfloat16")):
        text = json.dumps(registered(name).spec_to_json(spec))
        assert registered(name).spec_from_json(json.loads(text)) == spec
        assert isinstance(spec, registered(name).spec_type)
        if name == "powerprop":
            with pytest.raises(FoldError, match="do not tell the exponent"):
                registered(name).infer(registered(name).shapes(spec), WeightForm(shape))
            continue
        shapes = [list(s) for s in registered(name).shapes(spec)]
        # Which axes are rows the shapes must tell.
        unknown = WeightForm(shape, "bfloat16", transposed)
        assert registered(name).infer(shapes, unknown) == spec
        shapes[0][-1] += 1
        with pytest.raises(FoldError):
            registered(name).infer(shapes, unknown)


def composed(name: str, spec: Any, *tensors: Tensor) -> tuple[Tensor]:
    return (registered(name).compose(tensors, spec),)


@of_weights
def test_the_cost_is_exact(name: str, form: tuple[Any, ...]) -> None:
    for spec in candidates(name, form)[:4]:
        cost = registered(name).cost(spec)
        leaves = [torch.zeros(s, requires_grad=True) for s in registered(name).shapes(spec)]
        kept = [leaves[place].numel() for place in registered(name).untrained(spec)]
        assert cost.untrained == sum(kept)
        assert cost.parameters == sum(leaf.numel() for leaf in leaves) - sum(kept)
        assert cost.added == cost.parameters - math.prod(form[0])
        if name in ("gains", "md", "powerprop"):
            continue  # No matrix product: its entries are counted by hand.
        added = SUMS.get(name, 0) * math.prod(form[0])
        if name == "orepa":
            added += 3 * form[0][0] * form[0][1]  # The gains of the 1 x 1 branches.
        with FlopCounterMode(display=False) as forward:
            weight = registered(name).compose(leaves, spec)
        assert forward.get_total_flops() == cost.forward_flops - added
        with FlopCounterMode(display=False) as backward:
            weight.sum().backward()
        assert backward.get_total_flops() == cost.backward_flops
        (weight,), again = keeping_nothing(partial(composed, name, spec), leaves)
        with FlopCounterMode(display=False) as backward:
            weight.sum().backward()
        assert backward.get_total_flops() == cost.backward_flops + cost.again_flops
        assert again or not cost.again_flops
        assert cost.largest_intermediate >= math.prod(form[0])


shapes_of_weights = st.one_of(
    st.tuples(st.integers(1, 900), st.integers(1, 900)),
    st.tuples(st.integers(1, 200), st.integers(1, 200), st.just(3), st.just(3)),
)


@named
@settings(max_examples=8)
@given(shape=shapes_of_weights, turned=st.booleans())
def test_candidates_rise_in_added_parameters(
    name: str, shape: tuple[int, ...], turned: bool
) -> None:
    form = (shape, turned and len(shape) == 2, math.prod(shape[2:]), 1)
    assume(takes(name, form))
    specs = candidates(name, form, "float16")
    added = [registered(name).cost(spec).added for spec in specs]
    assert 0 < len(specs) <= 40
    assert added == sorted(set(added))
    assert {(spec.shape, spec.dtype, spec.transposed) for spec in specs} == {
        (shape, "float16", form[1])
    }
    assert usual(name, form, "float16") in specs


@named
def test_the_traced_graph_and_its_gradients(name: str) -> None:
    form = KERNEL if name in KERNELS_ONLY else WEIGHTS["addmm operand"]
    spec = usual(name, form, "bfloat16")
    tensors = registered(name).decompose(random(form[0]).bfloat16(), spec)
    graph = make_fx(lambda *t: registered(name).compose(t, spec))(*tensors)
    assert torch.equal(graph(*tensors), registered(name).compose(tensors, spec))
    casts = [n for n in graph.graph.nodes if "_to_copy" in str(n.target)]
    assert len(casts) == 1, "compose ends in one cast"
    assert not any(n.op == "get_attr" for n in graph.graph.nodes)


@of_kinds
def test_gradients_are_those_of_finite_differences(name: str, form: tuple[Any, ...]) -> None:
    spec = usual(name, (form[0], *form[1:]), "float64")
    leaves = [
        t.requires_grad_() for t in registered(name).decompose(random(form[0]).double(), spec)
    ]
    probe = random(form[0], 1).double()

    def value(*tensors: Tensor) -> Tensor:
        return (registered(name).compose(tensors, spec) * probe).sum()

    grads = torch.autograd.grad(value(*leaves), leaves)
    for k, leaf in enumerate(leaves):
        step = random(tuple(leaf.shape), 2 + k).double() * 1e-6
        ends = [value(*leaves[:k], leaf + s * step, *leaves[k + 1 :]) for s in (1, -1)]
        slope = (ends[0] - ends[1]).item() / 2
        assert slope == pytest.approx(float((grads[k] * step).sum()), rel=1e-6, abs=1e-12)


@of_kinds
def test_compose_goes_through_vmap(name: str, form: tuple[Any, ...]) -> None:
    """Replicas of one student, each with tensors of its own, composed together."""
    spec = usual(name, form)
    made = [registered(name).decompose(random(form[0], seed), spec) for seed in range(3)]
    stacks = tuple(torch.stack(row) for row in zip(*made, strict=True))

    def compose(*tensors: Tensor) -> Tensor:
        return registered(name).compose(tensors, spec)

    together = torch.func.vmap(compose)(*stacks)
    alone = torch.stack([compose(*tensors) for tensors in made])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    per_replica = torch.func.vmap(torch.func.grad(lambda *t: compose(*t).square().sum()))(*stacks)
    wanted = torch.autograd.functional.jacobian(
        lambda t: compose(t, *made[1][1:]).square().sum(), made[1][0]
    )
    torch.testing.assert_close(per_replica[1], wanted, rtol=1e-4, atol=1e-5)


def test_a_weight_whose_norm_is_held_takes_no_decay() -> None:
    assert registered("md").terms(usual("md", example("md"))) == ()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "md"])
def test_decay_terms_scale_the_weight(name: str) -> None:
    from opdf_compile.planning.entry import PlanEntry

    spec = usual(name, example(name), "float64")
    entry = PlanEntry("weight", name, spec)
    tensors = list(registered(name).decompose(random(example(name)[0]).double(), spec))
    # Away from the start, where a tensor may be zero.
    tensors = [t + 0.1 * random(tuple(t.shape), k).double() for k, t in enumerate(tensors)]
    weight = registered(name).compose(tensors, spec)
    assert entry.terms is not None
    assert sorted(k for term in entry.terms for k in term) == list(range(len(tensors)))
    for term in entry.terms:
        for place, share in term.items():
            tensors[place] = tensors[place] * 0.9**share
        first = next(iter(term))
        tensors[first] = -tensors[first]
    torch.testing.assert_close(
        registered(name).compose(tensors, spec), -0.9 * weight, rtol=1e-12, atol=1e-12
    )
    assert len(entry.rates) == len(tensors)


@named
@pytest.mark.parametrize(
    ("weight", "sentence"),
    [
        (torch.ones(30, 48), r"shape \[30, 48\] was found, \[48, (30|5, 3, 2)\] is wanted"),
        (torch.ones(48, 30) / 0, "1440 of 1440 entries are NaN or infinite"),
        (torch.ones(48, 30, device="meta"), "it has no values"),
    ],
)
def test_weights_that_cannot_be_decomposed(name: str, weight: Tensor, sentence: str) -> None:
    form = example(name)
    fitted = weight.reshape(form[0]) if weight.shape[0] == form[0][0] else weight
    with pytest.raises(InputError, match=sentence):
        registered(name).decompose(fitted, usual(name, form))


@named
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"shape": [48]}, "two axes or more"),
        ({"shape": "48"}, "list of positive integers|tuple of positive integers"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"transposed": 0}, "transposed"),
        ({"row_axes": 2}, "row_axes is 2"),
        ({"colour": 3}, "unknown keys: colour"),
    ],
)
def test_json_that_is_no_spec(name: str, change: dict[str, Any], sentence: str) -> None:
    good = registered(name).spec_to_json(usual(name, example(name)))
    with pytest.raises(PlanError, match=sentence):
        registered(name).spec_from_json({**good, **change})
    with pytest.raises(PlanError, match="lacks shape"):
        registered(name).spec_from_json({k: v for k, v in good.items() if k != "shape"})
    with pytest.raises(PlanError, match="is a JSON object, found list"):
        registered(name).spec_from_json([])


def changed(name: str, **values: Any) -> None:
    replace(usual(name, example(name)), **values)


@pytest.mark.parametrize(
    ("name", "values", "sentence"),
    [
        ("delta", {"rank": 31}, "rank is 31, wanted 1 to 30"),
        ("delta", {"base": "none"}, "base is 'none', wanted one of trained, frozen"),
        ("delta", {"size": 0}, "size is 0, wanted a number above 0 and at most 1"),
        ("delta", {"size": True}, "size is True"),
        ("do_conv", {"groups": 5}, "groups is 5, wanted a divisor of the first axis of a weight"),
        ("do_conv", {"groups": True}, "groups is True"),
        (
            "do_conv",
            {"shape": (48, 30)},
            "kernel of more than one element, found a weight of shape",
        ),
        ("do_conv", {"shape": (48, 30, 1, 1)}, "kernel of more than one element"),
        ("orepa", {"groups": 5}, "groups is 5, wanted a divisor of the first axis of a weight"),
        ("orepa", {"shape": (48, 30)}, "orepa takes a convolution's kernel of more than one"),
        ("orepa", {"start": "random"}, "start is 'random', wanted one of weight, paper"),
        ("gains", {"decay_share": 0.5}, "decay_share is 0.5, wanted a number from 0 to below 0.5"),
        ("gains", {"decay_share": float("nan")}, "decay_share is nan"),
        ("gains", {"decay_share": "0"}, "decay_share is '0'"),
        ("powerprop", {"exponent": 1}, "exponent is 1, wanted a number above 1 and at most 8"),
        ("powerprop", {"exponent": float("nan")}, "exponent is nan"),
        ("powerprop", {"exponent": "2"}, "exponent is '2'"),
        ("spectral", {"rank": 31}, "rank is 31, wanted 1 to 30"),
        ("spectral", {"rank": True}, "rank is True"),
        ("spectral", {"depth": 1}, "depth is 1, wanted 2 to 63"),
        ("spectral", {"outer_rate": 0}, "outer_rate is 0, wanted a positive number"),
        ("wide", {"expansion": 0}, "expansion is 0, wanted a whole number from 1 to 16"),
        ("wide", {"expansion": 4.0}, "expansion is 4.0"),
        ("wide", {"expansion": 17}, "expansion is 17"),
        ("shared", {"blocks": 5}, "blocks is 5, wanted a divisor of the 48 rows"),
        ("shared", {"out_modes": (48, 1)}, "make a block of 48 x 30, wanted two modes each for 12"),
        ("shared", {"in_modes": (30,)}, "the blocks' modes are no chain: each core needs"),
    ],
)
def test_choices_that_do_not_fit(name: str, values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(PlanError, match=sentence):
        changed(name, **values)


@pytest.mark.parametrize(
    ("name", "cores"),
    [
        ("delta", 2),
        ("do_conv", 1),
        ("do_conv", 3),
        ("gains", 2),
        ("orepa", 6),
        ("powerprop", 2),
        ("shared", 2),
        ("shared", 4),
        ("spectral", 2),
        ("svd", 3),
        ("wide", 1),
        ("wide", 3),
    ],
)
def test_numbers_of_cores_that_there_are_not(name: str, cores: int) -> None:
    with pytest.raises(PlanError, match=f"found cores={cores}"):
        registered(name).propose(weight(example(name)), cores=cores)
