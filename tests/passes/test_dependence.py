"""What varies with the input, on graphs of a few nodes."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from opdf_compile.passes.dependence import Dependence, varies_by_itself

aten = torch.ops.aten


def varying(graph: Graph) -> set[str]:
    return {node.name for node in Dependence(graph).varying}


def graph_of(build: Callable[[Graph], Node]) -> Graph:
    graph = Graph()
    graph.output(build(graph))
    return graph


def test_an_input_varies_and_all_that_it_reaches() -> None:
    graph = Graph()
    x = graph.placeholder("x")
    weight = graph.get_attr("weight")
    turned = graph.call_function(aten.t.default, (weight,))
    product = graph.call_function(aten.mm.default, (x, turned))
    graph.output(product)
    assert varying(graph) == {"x", "mm_default", "output"}
    assert Dependence(graph).sources(turned) == (weight, turned)
    assert Dependence(graph).sources(product) == (x, weight, turned, product)


@pytest.mark.parametrize(
    ("target", "args"),
    [
        (aten.rand.default, ([2, 2],)),
        (aten.randn.default, ([2, 2],)),
        (aten.dropout.default, ("weight", 0.5, True)),
        (aten.bernoulli.default, ("weight",)),
        (aten.rand_like.default, ("weight",)),
        (aten.normal.Tensor_float, ("weight",)),
        (aten.native_dropout.default, ("weight", 0.5, True)),
        (aten.multinomial.default, ("weight", 1)),
    ],
    ids=str,
)
def test_random_numbers_vary(target: Any, args: tuple[Any, ...]) -> None:
    graph = Graph()
    weight = graph.get_attr("weight")
    drawn = graph.call_function(target, tuple(weight if a == "weight" else a for a in args))
    product = graph.call_function(aten.mul.Tensor, (drawn, weight))
    other = graph.call_function(aten.neg.default, (weight,))
    graph.output((product, other))
    assert varying(graph) == {drawn.name, product.name, "output"}


def test_constants_do_not_vary() -> None:
    graph = Graph()
    made = graph.call_function(aten.arange.default, (4,))
    graph.output(graph.call_function(aten.mul.Tensor, (made, 2)))
    assert varying(graph) == set()


def test_what_is_written_to_varies_for_every_reader() -> None:
    """Before the write and after it, by either of two nodes that read the buffer by name."""
    graph = Graph()
    x = graph.placeholder("x")
    first, second, other = (graph.get_attr(name) for name in ("count", "count", "weight"))
    early = graph.call_function(aten.neg.default, (first,))
    graph.call_function(aten.add_.Tensor, (second, x))
    late = graph.call_function(aten.exp.default, (first,))
    still = graph.call_function(aten.abs.default, (other,))
    graph.output((early, late, still))
    found = varying(graph)
    assert {first.name, second.name, early.name, late.name} <= found
    assert not {other.name, still.name} & found


@pytest.mark.parametrize(
    ("target", "args"),
    [
        (aten.view.default, ([4],)),
        (aten.t.default, ()),
        (aten.select.int, (0, 0)),
        (aten.slice.Tensor, (0, 0, 1)),
        (aten.detach.default, ()),
        (aten.split.Tensor, (1,)),
    ],
    ids=str,
)
def test_a_write_through_a_view_reaches_its_base(target: Any, args: tuple[Any, ...]) -> None:
    graph = Graph()
    base = graph.get_attr("buffer")
    view = graph.call_function(target, (base, *args))
    if target is aten.split.Tensor:
        view = graph.call_function(operator.getitem, (view, 0))
    graph.call_function(aten.zero_.default, (view,))
    read = graph.call_function(aten.neg.default, (base,))
    by_name = graph.get_attr("buffer")
    graph.output((read, by_name))
    assert {base.name, view.name, read.name, by_name.name} <= varying(graph)


def test_a_write_by_keyword_and_into_a_list_counts() -> None:
    graph = Graph()
    weight, out, listed = (graph.get_attr(name) for name in ("weight", "out", "listed"))
    graph.call_function(aten.neg.out, (weight,), {"out": out})
    graph.call_function(aten._foreach_mul_.Scalar, ([listed], 2.0))
    graph.output((weight, out, listed))
    found = varying(graph)
    assert {out.name, listed.name} <= found
    assert weight.name not in found


def test_a_copy_may_be_written_to() -> None:
    graph = Graph()
    base = graph.get_attr("weight")
    copied = graph.call_function(aten.clone.default, (base,))
    graph.call_function(aten.zero_.default, (copied,))
    read = graph.call_function(aten.neg.default, (base,))
    graph.output((read, copied))
    found = varying(graph)
    assert copied.name in found
    assert not {base.name, read.name} & found


def test_modules_methods_and_unknown_functions_vary_with_what_they_get() -> None:
    def anything(value: Tensor) -> Tensor:
        return value

    graph = Graph()
    weight = graph.get_attr("weight")
    for node in (
        graph.call_function(anything, (weight,)),
        graph.call_method("neg", (weight,)),
        graph.call_module("layer", (weight,)),
    ):
        assert node in Dependence(graph).varying
    assert weight in Dependence(graph).varying


def hops(graph_module: GraphModule) -> list[Node]:
    return [
        node
        for node in graph_module.graph.nodes
        if isinstance(node.target, torch._ops.HigherOrderOperator)
    ]


def test_a_higher_order_op_varies_and_what_it_reads_does_not() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = x @ self.weight
            return x + self.weight

    traced = torch.export.export(Nested(), (torch.randn(4, 4),), strict=False).module()
    (node,) = hops(traced)
    found = Dependence(traced.graph).varying
    assert node in found
    weights = [n for n in traced.graph.nodes if n.target == "weight"]
    assert weights
    assert not found & set(weights)


def nested(build: Callable[[Graph, Node, Node], Node]) -> GraphModule:
    """y = hop(graph, weight, x)."""
    inner = Graph()
    weight, x = inner.placeholder("weight"), inner.placeholder("x")
    inner.output((build(inner, weight, x),))
    root = nn.Module()
    root.weight = nn.Parameter(torch.ones(2))
    root.submod = GraphModule(nn.Module(), inner)
    graph = Graph()
    place = graph.placeholder("x")
    operands = graph.get_attr("submod"), graph.get_attr("weight"), place
    hop = torch._higher_order_ops.wrap.wrap_with_set_grad_enabled
    graph.output(graph.call_function(hop, (False, *operands)))
    return GraphModule(root, graph)


@pytest.mark.parametrize(
    ("build", "written"),
    [
        (lambda g, w, x: g.call_function(aten.add.Tensor, (w, x)), False),
        (lambda g, w, x: g.call_function(aten.add_.Tensor, (w, x)), True),
        (lambda g, w, x: g.call_function(aten.add_.Tensor, (x, w)), False),
        (
            lambda g, w, x: g.call_function(
                aten.add_.Tensor, (g.call_function(aten.view.default, (w, [2])), x)
            ),
            True,
        ),
    ],
    ids=["none", "the weight", "the input", "a view of the weight"],
)
def test_writes_inside_a_nested_graph_count(
    build: Callable[[Graph, Node, Node], Node], written: bool
) -> None:
    module = nested(build)
    (weight,) = [n for n in module.graph.nodes if n.target == "weight"]
    assert (weight in Dependence(module.graph).varying) == written


def test_components_share_nothing_and_keep_their_order() -> None:
    graph = Graph()
    a, b, c, d = (graph.get_attr(name) for name in "abcd")
    first = graph.call_function(aten.mul.Tensor, (a, c))
    second = graph.call_function(aten.neg.default, (b,))
    third = graph.call_function(aten.add.Tensor, (first, d))
    assert Dependence(graph).components() == [(a, c, d, first, third), (b, second)]


def test_batch_norm_in_training_leaves_weights_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).train()
    traced = torch.export.export(model, (torch.randn(4, 4),), strict=False).module()
    found = {str(node.target) for node in Dependence(traced.graph).varying if node.op == "get_attr"}
    assert found <= {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert "1.num_batches_tracked" in found


@pytest.mark.parametrize(
    ("function", "varies"),
    [
        (operator.setitem, True),
        (operator.iadd, True),
        (operator.ior, True),
        (operator.add, False),
        (operator.index, False),
        (operator.invert, False),
        (operator.is_, False),
        (operator.getitem, False),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_python_operators_that_write_in_place_vary(function: Any, varies: bool) -> None:
    graph = Graph()
    node = graph.call_function(function, ())
    assert varies_by_itself(node) is varies
