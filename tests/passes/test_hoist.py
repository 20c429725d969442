"""hoist on graphs: text in, forward and program out; and the graphs that it must refuse."""

from __future__ import annotations

import io
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from work import calls

from opdf_compile.errors import FoldError, InternalError, PlanError
from opdf_compile.graph.dump import dump
from opdf_compile.graph.tracing import trace
from opdf_compile.parametrizations.registry import registered
from opdf_compile.passes.compose_graph import WEIGHT_MARK, insert_compose
from opdf_compile.passes.expand import Expand
from opdf_compile.passes.fold import Fold
from opdf_compile.passes.hoist import Hoist, HoistResult, program_parts, weight_program
from opdf_compile.passes.regions import find_regions
from opdf_compile.planning.choose import plan
from opdf_compile.planning.plans import Plan

Makes = Callable[[str], Any]


def cores_of(model: nn.Module, made: Plan) -> dict[str, nn.ParameterList]:
    weights = dict(model.named_parameters(remove_duplicate=False))
    return {
        entry.key: nn.ParameterList(
            registered(entry.parametrization).decompose(weights[entry.key].detach(), entry.spec)
        )
        for entry in made.entries
    }


def expanded(
    model: nn.Module, *size: int, cores: int = 2, made: Plan | None = None
) -> tuple[GraphModule, Plan]:
    graph = trace(model, (torch.randn(size),)).graphs["eval"]
    made = plan(model, cores=cores, min_size=1) if made is None else made
    return Expand(made, cores_of(model, made))(graph).module, made


def hoisted(graph: GraphModule) -> HoistResult:
    result = Hoist()(graph)
    assert isinstance(result, HoistResult)
    return result


def text(graph: Graph | GraphModule | None) -> list[str]:
    assert graph is not None
    module = graph if isinstance(graph, GraphModule) else GraphModule(nn.Module(), Graph())
    if isinstance(graph, Graph):
        module._graph = graph
    return dump(module, shapes=False).splitlines()


FORWARD = [
    "%0 : get_attr weight",
    "%1 : get_attr bias",
    "%2 : placeholder input",
    "%3 : aten.linear.default(%2, %0, %1)",
    "return (%3)",
]
PROGRAM = [
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
    "return (%10)",
]


def test_the_forward_is_the_students_and_the_program_makes_its_weight() -> None:
    model = nn.Linear(4, 6)
    graph, made = expanded(model, 2, 4)
    before = text(graph)
    result = hoisted(graph)
    assert text(result.module) == FORWARD
    assert text(result.program) == PROGRAM
    assert result.keys == ("weight",)
    assert [(c.key, c.what) for c in result.changes] == [("weight", "moved out of the forward")]
    assert text(graph) == before, "a pass leaves its input as it was"
    assert text(weight_program(made)) == PROGRAM
    x = torch.randn(3, 4)
    torch.testing.assert_close(result.module(x), model(x))
    assert {name for name, _p in result.module.named_parameters()} == {"weight", "bias"}


def test_a_graph_without_cores_is_not_modified() -> None:
    graph = trace(nn.Linear(4, 6), (torch.randn(2, 4),)).graphs["eval"]
    result = hoisted(graph)
    assert (result.modified, result.program, result.parts()) == (False, None, ())
    assert text(result.module) == text(graph)


def test_hoist_is_idempotent_and_a_folded_graph_has_nothing_to_hoist() -> None:
    graph, _made = expanded(nn.Linear(4, 6), 2, 4)
    assert not hoisted(hoisted(graph).module).modified
    folded = Fold()(graph).module
    assert not any(WEIGHT_MARK in node.meta for node in folded.graph.nodes)
    assert not hoisted(folded).modified


class Several(nn.Module):
    """A shared layer, a tied weight, a grouped convolution, a weight that is read transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(12, 8)
        self.mix = nn.Conv1d(8, 8, 3, padding=1, groups=2)
        self.shared = nn.Linear(8, 8)
        self.head = nn.Linear(8, 12, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.mix(self.table(ids).transpose(1, 2)).transpose(1, 2)
        hidden = self.shared(self.shared(hidden)) @ self.shared.weight.mT
        return self.head(hidden)


def several() -> tuple[GraphModule, Plan, Several]:
    model = Several()
    graph = trace(model, (torch.randint(0, 12, (2, 5)),)).graphs["eval"]
    made = plan(model, cores=3, min_size=1, include=["mix.weight", "shared.weight", "table.weight"])
    return Expand(made, cores_of(model, made))(graph).module, made, model


def test_the_program_of_the_graph_is_the_program_of_the_plan_node_by_node() -> None:
    graph, made, _model = several()
    result = hoisted(graph)
    assert sorted(result.keys) == sorted(entry.key for entry in made.entries)
    assert len(result.keys) == 3
    by_key = {
        part.keys: part
        for part in program_parts(weight_program(made), [e.key for e in made.entries])
    }
    for part in result.parts():
        wanted = by_key.pop(part.keys)
        assert part.cores == wanted.cores
        assert text(part.graph) == text(wanted.graph)
    assert not by_key


def test_readers_after_the_weight_stay_in_the_forward() -> None:
    graph, _made, model = several()
    result = hoisted(graph)
    assert result.program is not None
    inside = {str(node.target) for node in result.program.nodes}
    assert not inside & {"aten.transpose.int", "aten.mT.default", "aten.numpy_T.default"}
    lines = text(result.module)
    assert sum(line.endswith("get_attr shared.weight") for line in lines) == 1
    (weight,) = [line.split(" ")[0] for line in lines if line.endswith("get_attr shared.weight")]
    readers = [line for line in lines if f"{weight}," in line or f"{weight})" in line]
    assert len(readers) == 3, "two linear ops and the transpose"
    ids = torch.randint(0, 12, (2, 5))
    torch.testing.assert_close(result.module(ids), model.eval()(ids))


def test_parts_are_the_connected_components() -> None:
    import networkx as nx

    graph, made, _model = several()
    result = hoisted(graph)
    assert result.program is not None
    edges = nx.Graph()
    for node in result.program.nodes:
        if node.op != "output":
            edges.add_node(node)
            edges.add_edges_from((node, source) for source in node.all_input_nodes)
    cores = [
        sorted(str(node.target) for node in component if node.op == "get_attr")
        for component in nx.connected_components(edges)
    ]
    assert sorted(sorted(part.cores) for part in result.parts()) == sorted(cores)
    assert len(cores) == len(made.entries)


def test_the_parts_compute_the_weights() -> None:
    graph, _made, model = several()
    owned = dict(graph.named_parameters(remove_duplicate=False))
    for part in hoisted(graph).parts():
        (found,) = GraphModule(nn.Module(), part.graph)(*(owned[name] for name in part.cores))
        torch.testing.assert_close(found, model.get_parameter(part.keys[0]), atol=1e-6, rtol=1e-5)


def shared_core() -> Graph:
    """a = s * t, b = s + u: two weights over one core, which two nodes read; c = v."""
    graph = Graph()
    s, t, again, u, v = (graph.get_attr(name) for name in ("s", "t", "s", "u", "v"))
    a = graph.call_function(torch.ops.aten.mul.Tensor, (s, t))
    b = graph.call_function(torch.ops.aten.add.Tensor, (again, u))
    c = graph.call_function(torch.ops.aten.neg.default, (v,))
    graph.output((c, a, b))
    return graph


def test_weights_over_one_core_are_one_part() -> None:
    program = shared_core()
    before = text(program)
    first, second = program_parts(program, ["c", "a", "b"])
    assert (first.keys, first.cores) == (("c",), ("v",))
    assert (second.keys, second.cores) == (("a", "b"), ("s", "t", "u"))
    values = GraphModule(nn.Module(), second.graph)(*map(torch.tensor, (2.0, 3.0, 4.0)))
    assert values == (6.0, 6.0)
    assert text(program) == before


def test_a_weight_that_is_its_own_core_is_a_part(made: Makes) -> None:
    model = nn.Linear(4, 6)
    entry_plan = made("identity").plan(model, "weight")
    (part,) = program_parts(weight_program(entry_plan), ["weight"])
    assert text(part.graph) == [
        "%0 : placeholder core_0",
        "%1 : aten.to.dtype(%0, torch.float32)",
        "return (%1)",
    ]


# Parametrizations that users make.


@pytest.mark.parametrize("name", ["power", "triangles", "rows", "identity"])
def test_parametrizations_of_users_expand_hoist_and_fold(made: Makes, name: str) -> None:
    model = nn.Linear(5, 6)
    graph, _plan = expanded(model, 2, 5, made=made(name).plan(model, "weight"))
    x = torch.randn(3, 5)
    torch.testing.assert_close(graph(x), model(x))
    result = hoisted(graph)
    assert text(result.module) == FORWARD
    torch.testing.assert_close(result.module(x), model(x))
    (part,) = result.parts()
    owned = dict(graph.named_parameters())
    (found,) = GraphModule(nn.Module(), part.graph)(*(owned[name] for name in part.cores))
    torch.testing.assert_close(found, model.weight)
    folded = Fold()(graph).module
    assert text(folded) == FORWARD
    torch.testing.assert_close(folded.get_parameter("weight"), model.weight)


@pytest.mark.parametrize("name", ["triangles", "rows", "power"])
def test_they_survive_a_file(made: Makes, name: str) -> None:
    model = nn.Linear(5, 6)
    graph, _plan = expanded(model, 2, 5, made=made(name).plan(model, "weight"))
    again = reloaded(graph, torch.randn(2, 5))
    x = torch.randn(2, 5)
    for result in (hoisted(again), Fold()(again)):
        torch.testing.assert_close(result.module(x), model(x))
        assert not any("arange" in line or "eye" in line for line in text(result.module))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_constants_are_made_on_the_device_of_the_cores(made: Makes, device: str) -> None:
    """Traced on the device of use: on tensors without memory, "meta" would stay in the graph."""
    model = nn.Linear(5, 6)
    entry = made("triangles").plan(model, "weight").entries[0]
    for place in ("cpu", device):
        graph = Graph()
        end = graph.output(())
        end.args = ((insert_compose(graph, entry, end, torch.device(place)),),)
        devices = {
            torch.device(n.kwargs["device"]).type for n in graph.nodes if "device" in n.kwargs
        }
        assert devices == {place}


def test_the_callers_autocast_does_not_enter_a_program() -> None:
    model = nn.Linear(12, 20)
    made = plan(model, cores=3, min_size=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lines = text(weight_program(made))
    assert not any("bfloat16" in line for line in lines)


def test_a_compose_that_reads_a_stored_tensor_is_refused(made: Makes) -> None:
    model = nn.Linear(5, 6)
    with pytest.raises(
        PlanError,
        match=r"'made-listed' reads a tensor that is none of its own .*"
        r"make constants by ops",
    ):
        weight_program(made("listed").plan(model, "weight"))


def test_two_weights_that_claim_one_core_are_refused(
    made: Makes, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    shared = made("identity")
    monkeypatch.setattr(type(shared), "core_names", lambda self, key, spec: ("both_cores.0",))
    with pytest.raises(PlanError, match=r"'0.weight' and '1.weight' both claim the core 'both_cor"):
        weight_program(shared.plan(model, "0.weight", "1.weight"))


# Refusals.

SENTENCE = r"the weight 'weight' cannot leave the forward: .* depends on an input, a random number"


def test_a_random_compose_is_refused(made: Makes) -> None:
    model = nn.Linear(5, 6)
    graph, _plan = expanded(model, 2, 5, made=made("random").plan(model, "weight"))
    with pytest.raises(PlanError, match=SENTENCE):
        hoisted(graph)


def rewired(graph: GraphModule, change: Callable[[Graph, Node, Node], Node]) -> GraphModule:
    """Put something between the product of the cores and what follows it."""
    (product,) = [n for n in graph.graph.nodes if n.target is torch.ops.aten.mm.default]
    (x,) = [n for n in graph.graph.nodes if n.op == "placeholder"]
    product.append(x)
    readers = list(product.users)
    with graph.graph.inserting_after(x):
        new = change(graph.graph, product, x)
    for reader in readers:
        reader.replace_input_with(product, new)
    graph.graph.lint()
    graph.recompile()
    return graph


def test_a_compose_that_depends_on_an_input_is_refused() -> None:
    graph, _made = expanded(nn.Linear(4, 6), 2, 4)

    def scaled(inner: Graph, product: Node, x: Node) -> Node:
        return inner.call_function(torch.ops.aten.mul.Tensor, (product, x))

    with pytest.raises(PlanError, match=SENTENCE + r".*use the inline form \(opdf.expand\)"):
        hoisted(rewired(graph, scaled))


def test_a_compose_that_reads_a_written_buffer_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)).train()
    graph = trace(model, (torch.randn(2, 4),)).graphs["train"]
    made = plan(model, cores=2, min_size=1)
    graph = Expand(made, cores_of(model, made))(graph).module

    def counted(inner: Graph, product: Node, x: Node) -> Node:
        count = inner.get_attr("1.num_batches_tracked")
        with inner.inserting_after(count):
            return inner.call_function(torch.ops.aten.mul.Tensor, (product, count))

    with pytest.raises(PlanError, match="'0.weight' cannot leave the forward"):
        hoisted(rewired(graph, counted))


def test_a_compose_with_a_higher_order_op_is_refused() -> None:
    graph, _made = expanded(nn.Linear(4, 6), 2, 4)
    inner = Graph()
    inner.output((inner.call_function(torch.ops.aten.neg.default, (inner.placeholder("w"),)),))
    graph.add_module("submod", GraphModule(nn.Module(), inner))

    def nested(outer: Graph, product: Node, x: Node) -> Node:
        hop = torch._higher_order_ops.wrap.wrap_with_set_grad_enabled
        submod = outer.get_attr("submod")
        with outer.inserting_after(submod):
            call = outer.call_function(hop, (True, submod, product))
        with outer.inserting_after(call):
            return outer.call_function(operator.getitem, (call, 0))

    with pytest.raises(PlanError, match=SENTENCE):
        hoisted(rewired(graph, nested))


def test_ensures_rejects_what_hoist_must_not_return() -> None:
    graph, _made = expanded(nn.Linear(4, 6), 2, 4)
    result = hoisted(graph)
    with pytest.raises(InternalError, match="hoist left 'weight_cores.0' in the forward"):
        Hoist().ensures(HoistResult(graph, result.changes, result.program, result.keys))
    with pytest.raises(InternalError, match="moved an input into the weight program"):
        Hoist().ensures(HoistResult(result.module, result.changes, graph.graph, result.keys))


# Graphs that come from a file: no metadata, and assertions on dtypes before every cast.


def reloaded(graph: GraphModule, *example: Tensor) -> GraphModule:
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(graph, example, strict=False), buffer)
    buffer.seek(0)
    again: GraphModule = torch.export.load(buffer).module(check_guards=False)
    return again


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_reloaded_graph_is_hoisted_alike(dtype: torch.dtype) -> None:
    model = nn.Linear(4, 6, dtype=dtype)
    graph = trace(model, (torch.randn(2, 4, dtype=dtype),)).graphs["eval"]
    made = plan(model, cores=2, min_size=1)
    graph = Expand(made, cores_of(model, made))(graph).module
    again = reloaded(graph, torch.randn(2, 4, dtype=dtype))
    assert not any(WEIGHT_MARK in node.meta for node in again.graph.nodes)
    result = hoisted(again)
    (part,), (wanted,) = result.parts(), program_parts(weight_program(made), ["weight"])
    assert (part.keys, part.cores) == (wanted.keys, wanted.cores)
    assert not any("assert" in line or "_cores" in line for line in text(result.module))
    x = torch.randn(3, 4, dtype=dtype)
    torch.testing.assert_close(result.module(x), model(x))


def test_a_reloaded_graph_whose_cores_lead_nowhere_is_a_sentence() -> None:
    graph, _made = expanded(nn.Linear(4, 6), 2, 4)

    def scaled(inner: Graph, product: Node, x: Node) -> Node:
        return inner.call_function(torch.ops.aten.mul.Tensor, (product, x))

    graph = rewired(graph, scaled)
    for node in graph.graph.nodes:
        node.meta.pop(WEIGHT_MARK, None)
    with pytest.raises(FoldError, match="the cores of 'weight' do not lead to one weight"):
        hoisted(graph)


def test_nan_in_the_cores_is_a_sentence() -> None:
    graph, _made = expanded(nn.Linear(4, 6), 2, 4)
    graph.get_parameter("weight_cores.0").data.fill_(float("nan"))
    with pytest.raises(FoldError, match="the cores of 'weight' give NaN or infinity"):
        hoisted(graph)


# Growth.


def deep(layers: int) -> GraphModule:
    """x -> (linear, dropout) repeated, every weight expanded; made without a trace."""
    model = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(layers)))
    graph = Graph()
    value = graph.placeholder("x")
    for layer in range(layers):
        weight = graph.get_attr(f"{layer}.weight")
        value = graph.call_function(torch.ops.aten.linear.default, (value, weight))
        value = graph.call_function(torch.ops.aten.dropout.default, (value, 0.1, True))
    graph.output(value)
    made = plan(model, cores=2, min_size=1)
    return Expand(made, cores_of(model, made))(GraphModule(model, graph)).module


@pytest.mark.parametrize(
    ("few", "many"), [(25, 100), pytest.param(125, 500, marks=pytest.mark.slow)]
)
def test_the_work_grows_with_the_depth_and_no_faster(few: int, many: int) -> None:
    found: list[int] = []

    def work(layers: int) -> int:
        graph = deep(layers)
        return calls(lambda: found.append(len(hoisted(graph).parts())))

    work(1)  # What is done once in a process is done.
    assert work(many) <= 1.1 * (many / few) * work(few)
    assert found == [1, many, few]


def test_the_counter_sees_work_that_grows_faster() -> None:
    def visit(_node: Node) -> None: ...

    def quadratic(graph: GraphModule) -> None:
        nodes = list(graph.graph.nodes)
        for _ in nodes:
            for node in nodes:
                visit(node)

    few, many = deep(5), deep(20)
    assert calls(lambda: quadratic(many)) > 10 * calls(lambda: quadratic(few))


def test_regions_of_a_deep_graph_are_found_in_linear_work() -> None:
    few, many = deep(50), deep(200)
    find_regions(few)
    assert calls(lambda: find_regions(many)) <= 4.4 * calls(lambda: find_regions(few))
