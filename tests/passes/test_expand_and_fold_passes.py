"""expand and fold on graphs: text in, text out; the algebra against einsum; refusing checkers."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from quick import covering
from torch import Tensor, nn
from torch.fx import GraphModule

from opdf_compile.errors import FoldError, InternalError
from opdf_compile.graph.dump import dump
from opdf_compile.graph.tracing import PHASES, trace
from opdf_compile.parametrizations.registry import registered
from opdf_compile.passes.check import CheckShapes
from opdf_compile.passes.contract import GraphChange, GraphPass, PassResult, Pipeline, copy_graph
from opdf_compile.passes.expand import Expand
from opdf_compile.passes.fold import Fold
from opdf_compile.passes.regions import core_key, evaluate, find_regions, weight_dtype
from opdf_compile.planning.choose import plan
from opdf_compile.planning.plans import Plan


def cores_of(model: nn.Module, made: Plan) -> dict[str, nn.ParameterList]:
    weights = dict(model.named_parameters(remove_duplicate=False))
    return {
        entry.key: nn.ParameterList(
            registered(entry.parametrization).decompose(weights[entry.key].detach(), entry.spec)
        )
        for entry in made.entries
    }


def expanded(model: nn.Module, *size: int, cores: int = 2) -> tuple[GraphModule, Plan]:
    graph = trace(model, (torch.randn(size),)).graphs["eval"]
    made = plan(model, cores=cores, min_size=1)
    return Expand(made, cores_of(model, made))(graph).module, made


def text(graph: GraphModule) -> list[str]:
    return dump(graph, shapes=False).splitlines()


PLAIN = [
    "%0 : get_attr weight",
    "%1 : get_attr bias",
    "%2 : placeholder input",
    "%3 : aten.linear.default(%2, %0, %1)",
    "return (%3)",
]
# 6x4 = [3,2]x[2,2]: D = min(6, 4) = 4; (6,4) @ (4,4), modes brought together, one closing cast.
EXPANDED = [
    "%0 : get_attr weight_cores.0",
    "%1 : get_attr weight_cores.1",
    "%2 : aten.view.default(%0, [6, 4])",
    "%3 : aten.view.default(%1, [4, 4])",
    "%4 : aten.mm.default(%2, %3)",
    "%5 : aten.view.default(%4, [3, 2, 2, 2])",
    "%6 : aten.permute.default(%5, [0, 2, 1, 3])",
    "%7 : aten.clone.default(%6, memory_format=torch.contiguous_format)",
    "%8 : aten._unsafe_view.default(%7, [6, 4])",
    "%9 : aten.view.default(%8, [6, 4])",
    "%10 : aten.to.dtype(%9, torch.float32)",
    "%11 : get_attr bias",
    "%12 : placeholder input",
    "%13 : aten.linear.default(%12, %10, %11)",
    "return (%13)",
]


def test_expand_in_text_and_fold_back_in_text() -> None:
    model = nn.Linear(4, 6)
    graph = trace(model, (torch.randn(2, 4),)).graphs["eval"]
    made = plan(model, cores=2, min_size=1)
    spec: Any = made.entries[0].spec
    assert (spec.out_modes, spec.in_modes) == ((3, 2), (2, 2))
    result = Expand(made, cores_of(model, made))(graph)
    assert text(graph) == PLAIN
    assert text(result.module) == EXPANDED
    assert result.changes == (GraphChange("weight", "composed of 2 cores"),)
    folded = Fold()(result.module)
    assert text(folded.module) == PLAIN
    assert folded.changes == (GraphChange("weight", "folded from 2 cores"),)
    assert text(result.module) == EXPANDED, "a pass leaves its input as it was"
    assert [n for n, _p in folded.module.named_parameters()].count("weight") == 1
    assert not any("_cores" in name for name, _p in folded.module.named_parameters())


def test_a_weight_with_several_uses_is_composed_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(self.inner(x))

    graph, _made = expanded(Twice(), 2, 4)
    lines = text(graph)
    assert sum("aten.to.dtype" in line for line in lines) == 1
    assert sum("_cores" in line for line in lines) == 2
    (weight,) = [line.split(" ")[0] for line in lines if "aten.to.dtype" in line]
    assert sum(f", {weight}" in line for line in lines) == 2


def test_a_graph_without_planned_weights_is_not_modified() -> None:
    graph = trace(nn.ReLU(), (torch.randn(2, 4),)).graphs["eval"]
    assert not Expand(Plan(()), {})(graph).modified
    assert not Fold()(graph).modified
    assert not CheckShapes(Plan(()))(graph).modified


def chain_by_einsum(cores: list[np.ndarray]) -> np.ndarray:
    """W[(i1..in), (j1..jn)] = T1[i1,j1] T2[i2,j2] .. Tn[in,jn], written out."""
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    bonds = [next(letters) for _ in range(len(cores) + 1)]
    rows = [next(letters) for _ in cores]
    columns = [next(letters) for _ in cores]
    terms = [bonds[k] + rows[k] + columns[k] + bonds[k + 1] for k in range(len(cores))]
    result = bonds[0] + "".join(rows) + "".join(columns) + bonds[-1]
    full = np.einsum(",".join(terms) + "->" + result, *cores)
    out = int(np.prod([core.shape[1] for core in cores]))
    return full.reshape(out, -1)


@pytest.mark.parametrize(
    ("layer", "cores"),
    covering(
        [
            (nn.Linear(12, 18, bias=False), (2, 12), (18, 12)),
            (nn.Conv2d(6, 8, 3, groups=2), (2, 6, 5, 5), (8, 3, 3, 3)),
            (nn.ConvTranspose1d(6, 4, 3), (2, 6, 5), (6, 4, 3)),
        ],
        [2, 3, 5],
    ),
)
def test_any_cores_fold_to_their_einsum(
    layer: tuple[nn.Module, tuple[int, ...], tuple[int, ...]], cores: int
) -> None:
    model, size, shape = layer
    graph, _made = expanded(model, *size, cores=cores)
    with torch.no_grad():
        for name, parameter in graph.named_parameters():
            if "_cores" in name:
                parameter.copy_(torch.randn_like(parameter))
    (region,) = find_regions(graph)
    values = [
        graph.get_parameter(str(core.target)).detach().double().numpy() for core in region.cores
    ]
    oracle = chain_by_einsum(values).reshape(shape)
    np.testing.assert_allclose(evaluate(graph, region).numpy(), oracle, rtol=1e-12, atol=1e-12)
    weight = Fold()(graph).module.get_parameter("weight")
    assert weight.dtype == weight_dtype(region) == torch.float32
    assert np.array_equal(weight.detach().numpy(), oracle.astype(np.float32)) or (
        np.abs(weight.detach().numpy() - oracle).max() <= np.abs(oracle).max() * 2.0**-23
    )


@pytest.mark.parametrize("phase", PHASES)
def test_both_phases_expand_over_one_set_of_cores(phase: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    traced = trace(model, (torch.randn(2, 4),))
    made = plan(model, min_size=1)
    cores = cores_of(model, made)
    graph = Expand(made, cores)(traced.graphs[phase]).module
    assert graph.get_parameter("0.weight_cores.0") is cores["0.weight"][0]


def test_core_names() -> None:
    assert core_key("a.b.weight_cores.12") == ("a.b.weight", 12)
    for name in ("weight", "weight_cores", "weight_cores.x", "weight_cores.1.2", "_cores.1"):
        assert core_key(name) is None


# Checkers, each with an answer that it must reject.


def test_ensures_of_expand_rejects_a_weight_that_is_left() -> None:
    model = nn.Linear(4, 4)
    graph = trace(model, (torch.randn(2, 4),)).graphs["eval"]
    made = plan(model, min_size=1)
    with pytest.raises(InternalError, match="expand left 'weight' in the graph"):
        Expand(made, cores_of(model, made)).ensures(PassResult(graph))


def test_ensures_of_fold_rejects_a_core_that_is_left() -> None:
    graph, _made = expanded(nn.Linear(4, 4), 2, 4)
    with pytest.raises(InternalError, match="fold left 'weight_cores.0' in the graph"):
        Fold().ensures(PassResult(graph))


def test_check_shapes_rejects_wrong_cores() -> None:
    graph, made = expanded(nn.Linear(4, 6), 2, 4)
    check = CheckShapes(made)
    check(graph)
    cores = graph.get_submodule("weight_cores")
    good = cores[0]
    cores[0] = nn.Parameter(good.detach()[..., :-1].clone())
    with pytest.raises(
        InternalError, match=r"'weight_cores.0' is \(1, 3, 2, 3\) torch.float32, its"
    ):
        check(graph)
    cores[0] = nn.Parameter(good.detach().double())
    with pytest.raises(InternalError, match=r"torch.float64, its plan says \(1, 3, 2, 4\)"):
        check(graph)
    delattr(cores, "0")
    with pytest.raises(InternalError, match="the core 'weight_cores.0' is missing"):
        check(graph)


def test_check_shapes_lets_a_phase_leave_a_weight_out() -> None:
    _graph, made = expanded(nn.Linear(4, 6), 2, 4)
    CheckShapes(made)(trace(nn.ReLU(), (torch.randn(2, 4),)).graphs["eval"])


def test_fold_rejects_a_gap_between_cores() -> None:
    graph, _made = expanded(nn.Linear(4, 4), 2, 4, cores=3)
    for node in graph.graph.nodes:
        if str(node.target) == "weight_cores.1":
            graph.weight_cores.append(graph.weight_cores[1])
            node.target = "weight_cores.3"
    with pytest.raises(
        FoldError, match=r"the cores \[0, 2, 3\] of 'weight', wanted 0 to 3 without"
    ):
        Fold()(graph)


def test_fold_rejects_cores_that_lead_to_no_weight() -> None:
    graph, _made = expanded(nn.Linear(4, 4), 2, 4)
    (cast,) = [n for n in graph.graph.nodes if n.target is torch.ops.aten.to.dtype]
    cast.replace_all_uses_with(cast.args[0])
    graph.graph.erase_node(cast)
    with pytest.raises(FoldError, match="the cores of 'weight' do not lead to one weight"):
        Fold()(graph)


def test_fold_rejects_nan() -> None:
    graph, _made = expanded(nn.Linear(4, 4), 2, 4)
    graph.get_parameter("weight_cores.0").data.fill_(float("nan"))
    with pytest.raises(FoldError, match="the cores of 'weight' give NaN or infinity"):
        Fold()(graph)


@dataclass(frozen=True)
class Breaks(GraphPass):
    """Uses a node before it is there."""

    def call(self, module: GraphModule) -> PassResult:
        nodes = list(module.graph.nodes)
        nodes[-2].append(nodes[0])
        return PassResult(module)


@dataclass(frozen=True)
class Refuses(GraphPass):
    def requires(self, module: GraphModule) -> None:
        raise InternalError("not this graph")

    def call(self, module: GraphModule) -> PassResult:
        raise AssertionError("never reached")


def test_the_base_runs_requires_lint_and_ensures() -> None:
    graph = trace(nn.Linear(4, 4), (torch.randn(2, 4),)).graphs["eval"]
    with pytest.raises(RuntimeError, match="before it has been defined|was used before"):
        Breaks()(graph)
    with pytest.raises(InternalError, match="not this graph"):
        Refuses()(graph)
    assert (Refuses().name, text(graph)) == ("Refuses", PLAIN)


def test_a_pipeline_adds_up_changes_and_is_watched() -> None:
    model = nn.Linear(4, 4)
    graph = trace(model, (torch.randn(2, 4),)).graphs["eval"]
    made = plan(model, min_size=1)
    seen: list[tuple[str, int]] = []
    passes = Pipeline(
        [Expand(made, cores_of(model, made)), CheckShapes(made), Fold()],
        lambda graph_pass, result, seconds: seen.append((graph_pass.name, len(result.changes))),
    )
    result = passes(graph)
    assert seen == [("Expand", 1), ("CheckShapes", 0), ("Fold", 1)]
    assert (len(result.changes), result.modified) == (2, True)
    torch.testing.assert_close(result.module.get_parameter("weight"), model.weight)


def test_a_copied_graph_is_independent_and_keeps_metadata() -> None:
    graph = trace(nn.Linear(4, 4), (torch.randn(2, 4),)).graphs["eval"]
    copied = copy_graph(graph)
    x = torch.randn(3, 4)
    wanted = graph(x)
    torch.testing.assert_close(copied(x), wanted)
    assert copied.get_parameter("weight") is graph.get_parameter("weight")
    for node in copied.graph.nodes:
        assert "val" in node.meta or node.op == "output" or node.op == "get_attr"
    meta = copy.copy(next(iter(graph.graph.nodes)).meta)
    next(iter(copied.graph.nodes)).meta["mark"] = 1
    assert next(iter(graph.graph.nodes)).meta == meta
