"""A parametrization of one's own: a child of the base class, and a class that knows no base class.

W = A + B with A = B = W / 2: five functions of a child, and the same as others wrote it before
there was a base class, where a weight's form came as keywords.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.errors import FoldError, InternalError, PlanError
from opdf_compile.io.saved.core_folding import fold_state
from opdf_compile.parametrizations import MatrixSpec, Parametrization, WeightForm, registry
from opdf_compile.parametrizations.request import Option
from opdf_compile.tensor import Cost


class Child(Parametrization[MatrixSpec]):
    name = "halves"
    spec_type = MatrixSpec
    usual_cores = 2

    def decompose(self, weight: Tensor, spec: Any, *, device: Any = None) -> tuple[Tensor, ...]:
        return (weight / 2).to(self.core_dtype(spec)), (weight / 2).to(self.core_dtype(spec))

    def compose(self, tensors: Sequence[Tensor], spec: Any) -> Tensor:
        return (tensors[0] + tensors[1]).to(getattr(torch, spec.dtype))

    def shapes(self, spec: Any) -> tuple[tuple[int, ...], ...]:
        return spec.shape, spec.shape

    def cost(self, spec: Any) -> Cost:
        entries = math.prod(spec.shape)
        return Cost(parameters=2 * entries, added=entries, forward_flops=entries)

    def propose(self, form: WeightForm, *, cores: int) -> MatrixSpec:
        return MatrixSpec.of(form)


@dataclass(frozen=True)
class OwnSpec:
    shape: tuple[int, ...]
    dtype: str
    transposed: bool = False

    def with_dtype(self, dtype: str) -> OwnSpec:
        return replace(self, dtype=dtype)


class Stranger:
    """No child of anything; it keeps what it was asked for."""

    name = "halves"
    spec_type = OwnSpec
    usual_cores = 2

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    decompose = Child.decompose
    compose = Child.compose
    shapes = Child.shapes
    cost = Child.cost

    def core_names(self, key: str, spec: OwnSpec) -> list[str]:
        return [f"{key}_cores.{k}" for k in range(2)]

    def core_dtype(self, spec: OwnSpec) -> torch.dtype:
        return torch.float32

    def propose(self, weight_shape: Sequence[int], *, cores: int, **form: Any) -> OwnSpec:
        self.asked.append(form)
        return OwnSpec(tuple(weight_shape), form["dtype"], form["transposed"])

    def candidates(self, weight_shape: Sequence[int], **form: Any) -> list[OwnSpec]:
        return [self.propose(weight_shape, cores=2, **form)]

    def spec_to_json(self, spec: OwnSpec) -> dict[str, object]:
        return {"shape": list(spec.shape), "dtype": spec.dtype}

    def spec_from_json(self, data: Any) -> OwnSpec:
        return OwnSpec(tuple(data["shape"]), data["dtype"])

    def infer(
        self, shapes: Any, weight_shape: Sequence[int], *, dtype: str, transposed: bool
    ) -> OwnSpec:
        if [list(shape) for shape in shapes] != [list(weight_shape)] * 2:
            raise FoldError("no halves")
        return OwnSpec(tuple(weight_shape), dtype, transposed)


@pytest.fixture(params=[Child, Stranger])
def made(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    known = {k: v for k, v in registry._REGISTERED.items() if k == "mpo"}
    monkeypatch.setattr(registry, "_REGISTERED", known)
    own = request.param()
    opdf.register(own)
    yield own


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(32, 16))


X = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("request_of", [{}, {"scale": 2.0}])
def test_it_is_planned_trained_and_folded(made: Any, request_of: Any, tmp_path: Path) -> None:
    model = network()
    plan = opdf.plan(model, parametrization="halves", **request_of)
    assert [entry.parametrization for entry in plan.entries] == ["halves", "halves"]
    assert plan.scale == 2.0
    plan.save(tmp_path / "plan.json")
    assert opdf.Plan.load(tmp_path / "plan.json") == plan
    opt = opdf.Overparam(model, torch.optim.SGD, plan=plan, lr=0.1, decay="cores")
    before = model[2].weight.detach().clone()
    model[2].weight.grad = torch.ones_like(before)
    opt.step()
    # Both halves move, so that the weight moves twice as far.
    torch.testing.assert_close(model[2].weight, before - 0.2)
    folded = opdf.fold(opt)
    assert isinstance(folded, nn.Module)
    torch.testing.assert_close(folded(X), model(X))


def test_its_cores_are_folded_with_and_without_a_plan(made: Any) -> None:
    # Of matrices: without a plan tensors of four axes are taken for an MPO's.
    student = network()[2].eval()
    traced = opdf.trace(student, (torch.randn(2, 32),))
    plan = opdf.plan(traced, parametrization="halves")
    cores, wanted = opdf.expand(traced, plan).state_dict(), student.state_dict()
    assert set(cores) == {"weight_cores.0", "weight_cores.1", "bias"}
    for text, model in ((json.dumps(plan.to_json()), None), (None, student)):
        state = fold_state(cores, text, model)
        assert all(torch.equal(state[name], wanted[name]) for name in wanted)


def test_what_it_does_not_say_is_the_default(made: Any) -> None:
    (entry, _) = opdf.plan(network(), parametrization="halves").entries
    assert (entry.terms, entry.rates, entry.modes) == (None, (1.0, 1.0), "")
    assert entry.outside_clip_norm == frozenset()
    assert opdf.plan(network(), parametrization="halves").request == {"cores": 2}
    made.multilinear = True
    made.rates = lambda spec: (1.0, 3.0)
    made.describe = lambda spec: "two halves"
    made.outside_clip_norm = lambda spec: (1,)
    (entry, _) = opdf.plan(network(), parametrization="halves").entries
    assert (entry.terms, entry.rates) == (({0: 0.5, 1: 0.5},), (1.0, 3.0))
    assert entry.modes == "two halves"
    assert entry.outside_clip_norm == {"0.weight_cores.1"}


def test_a_fold_is_exact_and_rounded_once(made: Any) -> None:
    """1 + 2^-30 is a number of float64 alone: float32, in the sum or on the way, would lose it."""
    (entry, _) = opdf.plan(network(), parametrization="halves").entries
    cores = [torch.full((8, 3, 3, 3), value) for value in (1.0, 2.0**-30)]
    assert entry.compose(cores).unique().tolist() == [1.0]
    assert entry.fold(cores).unique().tolist() == [1.0]
    assert entry.fold(cores).dtype == torch.float32
    assert entry.fold(cores, torch.float64).unique().tolist() == [1 + 2.0**-30]


def test_a_weight_is_factorised_where_it_is_asked_for(made: Any) -> None:
    (entry, _) = opdf.plan(network(), parametrization="halves").entries
    weight, asked = network()[0].weight, []
    made.decompose = lambda weight, spec, *, device=None: asked.append(device) or (weight, weight)
    cores = [*entry.decompose(weight), *entry.decompose(weight, device="meta")]
    assert asked == [None, "meta"]
    assert not any(core.requires_grad for core in cores)


@pytest.mark.parametrize("made", [Stranger], indirect=True)
def test_a_stranger_is_asked_by_keywords_and_of_stacks_only_where_there_is_one(made: Any) -> None:
    opdf.plan(network(), parametrization="halves")
    plain = {"dtype": "float32", "transposed": False}
    assert made.asked == [{**plain, "kernel": 9}, {**plain, "kernel": 1}]
    registry.registered("halves").propose(WeightForm((2, 4, 8), row_axes=2), cores=2)
    assert made.asked[-1] == {**plain, "kernel": 1, "row_axes": 2}


@pytest.mark.parametrize("made", [Stranger], indirect=True)
def test_a_stranger_may_have_options(made: Any) -> None:
    with pytest.raises(PlanError, match="halves has no option 'share'; it has none"):
        opdf.plan(network(), parametrization="halves(share=0.5)")
    made.options = "a member of its own that was there before"
    assert len(opdf.plan(network(), parametrization="halves").entries) == 2
    made.options = {"share": Option(float, 0.5, "of the weight, what the first half has")}
    plan = opdf.plan(network(), parametrization="halves(share=0.25)")
    assert [form["share"] for form in made.asked[-2:]] == [0.25, 0.25]
    assert plan.request == {"cores": 2, "parametrization": "halves(share=0.25)"}
    opdf.plan(network(), parametrization="halves(share=0.125)", scale=2.0)
    assert made.asked[-1]["share"] == 0.125


@pytest.mark.parametrize("made", [Stranger], indirect=True)
def test_a_stranger_has_its_name_once(made: Any) -> None:
    opdf.register(made)
    with pytest.raises(InternalError, match="'halves' is taken by Stranger, so Child needs"):
        opdf.register(Child())


@pytest.mark.parametrize("made", [Stranger], indirect=True)
def test_what_a_stranger_lacks_without_a_default_is_named(
    made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(Stranger, "cost")
    with pytest.raises(AttributeError, match="'Stranger' object has no attribute 'cost'"):
        opdf.plan(network(), parametrization="halves")


def test_a_child_without_one_of_the_five_functions_is_no_parametrization() -> None:
    class Half(Child):
        compose = Parametrization.compose

    make: Callable[[], object] = Half
    with pytest.raises(TypeError, match="abstract .*'?compose"):
        make()
