"""plan: what was asked for is reached, totals are exact, every contradiction has a sentence."""

from __future__ import annotations

from math import prod
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.errors import PlanError
from opdf_compile.graph.flops import step_flops
from opdf_compile.graph.tracing import Traced, trace
from opdf_compile.planning.choose import plan
from opdf_compile.planning.plans import Plan


class Residual(nn.Module):
    """The shapes of a ResNet-18 at a quarter of its width."""

    def __init__(self) -> None:
        super().__init__()
        widths = [16, 16, 32, 64, 128]
        self.stem = nn.Conv2d(3, 16, 7, stride=2, padding=3, bias=False)
        self.stages = nn.ModuleList()
        for before, width in zip(widths, widths[1:], strict=False):
            stage = nn.ModuleDict(
                {
                    "a": nn.Conv2d(before, width, 3, padding=1, bias=False),
                    "b": nn.Conv2d(width, width, 3, padding=1, bias=False),
                    "skip": nn.Conv2d(before, width, 1, bias=False),
                }
            )
            self.stages.append(stage)
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in self.stages:
            x = torch.relu(stage["b"](torch.relu(stage["a"](x))) + stage["skip"](x))
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def resnet() -> Traced:
    torch.manual_seed(0)
    return trace(Residual(), (torch.randn(2, 3, 32, 32),))


def brute_force(value: Plan) -> tuple[int, int]:
    """(trained, deployed), counted on the shapes themselves."""
    trained = deployed = 0
    for entry in value.entries:
        spec: Any = entry.spec
        modes = list(zip(spec.out_modes, spec.in_modes, strict=True))
        sizes = [i * j for i, j in modes]
        bonds = [min(prod(sizes[:k]), prod(sizes[k:])) for k in range(len(sizes) + 1)]
        trained += sum(bonds[k] * s * bonds[k + 1] for k, s in enumerate(sizes))
        deployed += prod(entry.spec.shape)
    return trained, deployed


@pytest.mark.parametrize("cores", [2, 3, 5, pytest.param(64, marks=pytest.mark.slow)])
def test_cores(resnet: Traced, cores: int) -> None:
    made = plan(resnet, cores=cores)
    assert {len(entry.core_names) for entry in made.entries} == {cores}
    assert made.request == {"cores": cores}
    assert brute_force(made) == (made.cost.parameters, made.deployed)


def test_three_cores_are_the_default_without_a_batch(resnet: Traced) -> None:
    bare = resnet.source
    assert isinstance(bare, nn.Module)
    assert plan(bare) == plan(bare, cores=3)


@pytest.mark.parametrize("scale", [1.2, 1.5, 2.0, 3.0])
def test_scale_is_met_within_one_per_cent(resnet: Traced, scale: float) -> None:
    made = plan(resnet, scale=scale)
    assert made.scale == pytest.approx(scale, rel=0.01)
    trained, deployed = brute_force(made)
    assert (made.cost.parameters, made.deployed) == (trained, deployed)
    assert made.scale == trained / deployed


@pytest.mark.parametrize("overhead", [1.05, 1.2, 1.5])
def test_overhead_is_not_exceeded_and_used(resnet: Traced, overhead: float) -> None:
    made = plan(resnet, overhead=overhead)
    flops = step_flops(resnet.graphs["train"])
    assert made.student_step_flops == flops
    step = 1 + sum(entry.cost.step_flops for entry in made.entries) / flops
    assert made.overhead == pytest.approx(step)
    assert 1 + (overhead - 1) * 0.5 <= step <= overhead


def test_a_larger_overhead_adds_no_less(resnet: Traced) -> None:
    trained = [plan(resnet, overhead=o).cost.parameters for o in (1.05, 1.2, 1.5, 2.0)]
    assert trained == sorted(trained)


def test_an_overhead_that_takes_only_some_says_why_for_the_others() -> None:
    # One weight is cheap to compose against its many uses, the other is read for one row.
    class Uneven(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.small, self.large = nn.Linear(8, 8), nn.Linear(8, 257)

        def forward(self, x: Tensor) -> Tensor:
            return self.large(self.small(x))

    made = plan(trace(Uneven(), (torch.randn(64, 8),)), overhead=1.3)
    left = {r.key: r.reason for r in made.refusals}
    assert {e.key for e in made.entries} | set(left) == {"small.weight", "large.weight"}
    assert all(reason == "does not fit into the overhead asked for" for reason in left.values())


def test_include_exclude_and_min_size(resnet: Traced) -> None:
    only = plan(resnet, cores=3, include=["stages.0.*", "head.*"], exclude=["*skip*"])
    assert [e.key for e in only.entries] == [
        "stages.0.a.weight",
        "stages.0.b.weight",
        "head.weight",
    ]
    reasons = {r.key: r.reason for r in only.refusals}
    assert reasons["stem.weight"] == "is not named by include"
    assert reasons["stages.0.skip.weight"] == "is named by exclude"
    small = plan(resnet, cores=3, min_size=5000)
    assert all(entry.deployed >= 5000 for entry in small.entries)
    assert "fewer than min_size=5000" in {r.key: r.reason for r in small.refusals}["stem.weight"]


def test_one_glob_may_be_a_bare_string(resnet: Traced) -> None:
    assert plan(resnet, cores=3, include="head.*") == plan(resnet, cores=3, include=["head.*"])


def test_every_weight_is_planned_or_refused(resnet: Traced) -> None:
    made = plan(resnet, include=["stages.*"])
    named = {e.key for e in made.entries} | {r.key for r in made.refusals}
    assert named == {name for name, p in resnet.source.named_parameters() if p.ndim > 1}


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(30, 8), nn.Linear(8, 30, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.table(ids))


@pytest.mark.parametrize("glob", ["table.*", "head.weight", "*"])
def test_include_takes_a_tied_embedding_by_any_of_its_names(glob: str) -> None:
    traced = trace(Tied(), (torch.ones(2, 3, dtype=torch.int64),))
    with pytest.raises(PlanError, match="no weight is left to plan .*tied to an embedding of 30"):
        plan(traced)
    (entry,) = plan(traced, cores=3, include=[glob]).entries
    assert (entry.key, entry.aliases) == ("table.weight", ("head.weight",))


def test_a_weight_that_no_bond_fits_is_left_alone() -> None:
    made = plan(nn.Sequential(nn.Linear(1, 97), nn.Linear(97, 64)), cores=5)
    assert [entry.key for entry in made.entries] == ["1.weight"]
    assert [(r.key, r.reason) for r in made.refusals] == [
        ("0.weight", "has sizes that allow no bond: cores would add nothing")
    ]


def test_a_plan_of_a_module_is_the_plan_of_its_graph_but_for_flops(resnet: Traced) -> None:
    from_module = plan(resnet.source, cores=4)
    from_graph = plan(resnet, cores=4)
    assert from_module.entries == from_graph.entries
    assert (from_module.student_step_flops, from_module.overhead) == (0, None)
    assert "predicted step unknown without a graph" in str(from_module)
    from_module.validate(opdf.match(resnet))


BAD = [
    ({"cores": 3, "scale": 2.0}, "cores and scale are given together, wanted one of cores, scale"),
    ({"scale": 2.0, "overhead": 1.5}, "scale and overhead are given together"),
    ({"cores": 1}, r"cores is 1, wanted a whole number from 2 to 64; the default is cores=3"),
    ({"cores": 65}, "cores is 65, wanted a whole number from 2 to 64"),
    ({"cores": True}, "cores is True, wanted a whole number"),
    ({"cores": 3.0}, "cores is 3.0, wanted a whole number"),
    ({"cores": "3"}, "cores is '3', wanted a whole number"),
    ({"scale": 1.0}, "scale is 1.0, wanted a number above 1"),
    ({"scale": float("nan")}, "scale is nan, wanted a number above 1"),
    ({"scale": float("inf")}, "scale is inf, wanted a number above 1"),
    ({"scale": -2}, "scale is -2, wanted a number above 1"),
    ({"overhead": 0.9}, "overhead is 0.9, wanted a number above 1"),
    (
        {"scale": 2, "parametrization": "gains"},
        r"scale 2 is asked for, .* no choice: it has scale 1\.\d\d; leave scale out",
    ),
    ({"scale": 1e9}, r"scale 1e\+09 cannot be reached, these weights allow 1\.\d\d to \d+\.\d\d"),
    ({"overhead": 1 + 1e-9}, "no weight is left to plan .*overhead; *relax|does not fit into"),
    (
        {"include": ["nothing.*"]},
        r"the glob 'nothing\.\*' names none of the 14 weights \(the first",
    ),
    ({"exclude": ["nothing"]}, "the glob 'nothing' names none of the 14 weights"),
    ({"exclude": ["*"]}, "no weight is left to plan .*is named by exclude"),
    ({"min_size": 10**9}, "no weight is left to plan .*fewer than min_size"),
    ({"parametrization": "fourier"}, "fourier"),
    ({"parametrization": "mpo(cors=4)"}, r"mpo has no option 'cors' \(did you mean 'cores'\?\)"),
    (
        {"parametrization": "mpo(cores=4)", "cores": 3},
        "cores is given beside 'mpo\\(cores=4\\)', wh",
    ),
    (
        {"parametrization": "mpo(cores=4)", "scale": 2.0},
        "scale is given beside 'mpo\\(cores=4\\)', wh",
    ),
    ({"parametrization": "mpo(cores=65)"}, "number of cores .* from 2 to 64, found 65"),
    ({"parametrization": "wide(expansion=17)"}, "expansion is 17, wanted a whole number from 1"),
    ({"parametrization": "shared(blocks=0)"}, "blocks of shared is 0, wanted 1 or more"),
    ({"parametrization": "spectral(rank=0)"}, "rank is 0, wanted 1 to"),
]


@pytest.mark.parametrize(("options", "sentence"), BAD, ids=[str(row[0]) for row in BAD])
def test_errors(resnet: Traced, options: dict, sentence: str) -> None:
    with pytest.raises(PlanError, match=sentence):
        plan(resnet, **options)


def test_overhead_of_a_module_needs_a_graph() -> None:
    with pytest.raises(PlanError, match=r"overhead needs the FLOPs .* pass opdf.trace\(model, arg"):
        plan(nn.Linear(8, 8), overhead=1.5)


def test_a_model_without_weights() -> None:
    with pytest.raises(PlanError, match="has no Linear or Conv weight that this tool finds"):
        plan(nn.ReLU())


def test_opdf_plan_and_verify_stay_functions() -> None:
    import opdf_compile.parity  # noqa: F401

    assert opdf.plan is plan
    assert callable(opdf.verify)
    assert opdf.Plan is Plan
    assert "plan" in dir(opdf)
    with pytest.raises(AttributeError, match="opdf_compile.*nothing"):
        _ = opdf.nothing  # type: ignore[attr-defined]


@pytest.mark.parametrize("request_", [{"overhead": 1.5}, {"scale": 2.0}, {"cores": 3}], ids=str)
def test_a_traced_model_without_weights(request_: dict[str, float]) -> None:
    # It has a graph, and no bound on its scale: what it lacks is weights.
    traced = trace(nn.ReLU(), (torch.randn(2, 4),))
    with pytest.raises(PlanError, match="has no Linear or Conv weight that this tool finds"):
        plan(traced, **request_)
