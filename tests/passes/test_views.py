"""What a value is a view of, against the memory that each node of a graph gives."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from opdf_compile.graph.tracing import trace
from opdf_compile.passes import dependence as dependence_module
from opdf_compile.passes.dependence import Dependence

aten = torch.ops.aten


class Interpreted(torch.fx.Interpreter):
    """Keeps what each node gave, and so its memory."""

    def __init__(self, module: GraphModule) -> None:
        super().__init__(module)
        self.values: dict[Node, Any] = {}

    def run_node(self, n: Node) -> Any:
        self.values[n] = super().run_node(n)
        return self.values[n]


def memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@torch.no_grad()
def without_gradients(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return a * 2, b.unbind()[0].mT, a[0]


VIEWS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "dropout": lambda a, b: F.dropout(a, training=False),
    "feature dropout": lambda a, b: F.dropout2d(a, training=False),
    "alpha dropout": lambda a, b: F.alpha_dropout(a, training=False),
    "feature alpha dropout": lambda a, b: F.feature_alpha_dropout(a, training=False),
    "einsum of one": lambda a, b: torch.einsum("abcd->dcba", a),
    "einsum of two": lambda a, b: torch.einsum("abcd,abcd->abcd", a, b),
    "type_as": lambda a, b: a.type_as(b),
    "sum_to_size": lambda a, b: a.sum_to_size(a.shape),
    "at least": lambda a, b: torch.atleast_3d(a[0, 0]),
    "at least, of two": lambda a, b: torch.atleast_2d(a[0, 0, 0], b[0, 0, 0]),
    "broadcast": lambda a, b: torch.broadcast_tensors(a[:1], b),
    "grid": lambda a, b: torch.meshgrid(a[0, 0, 0], b[0, 0, 0], indexing="xy"),
    "product of one": lambda a, b: torch.cartesian_prod(a[0, 0, 0]),
    "product of two": lambda a, b: torch.cartesian_prod(a[0, 0, 0], b[0, 0, 0]),
    "conjugate of reals": lambda a, b: torch.conj_physical(a),
    "dense already": lambda a, b: a.to_dense(),
    "unsafe view": lambda a, b: aten._unsafe_view(a, [6, -1]),
    "unsafe chunks": lambda a, b: torch.unsafe_chunk(a, 2),
    "unsafe parts": lambda a, b: torch.unsafe_split(a, 1),
    "unsafe sizes": lambda a, b: torch.unsafe_split_with_sizes(a, [1, 1]),
    "region": without_gradients,
    "reshaped": lambda a, b: a.reshape(6, -1).unbind(0),
    "copied": lambda a, b: (a.clone(), torch.cat([b])),
}


@pytest.mark.parametrize("name", VIEWS)
def test_what_a_value_is_a_view_of(name: str) -> None:
    """The oracle is memory: the values of two nodes share theirs where they have one base."""

    class Made(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return VIEWS[name](x * 2, x + 1)

    x = torch.randn(2, 3, 4, 5)
    module = trace(Made(), (x,), phases=("eval",)).graphs["eval"]
    run = Interpreted(module)
    run.run(x)
    dependence = Dependence(module.graph)
    tensors = {n: v for n, v in run.values.items() if isinstance(v, Tensor) and n.op != "output"}
    assert len(tensors) > 3
    for node, value in tensors.items():
        alike = {n for n, v in tensors.items() if memory(v) == memory(value)}
        assert alike == {n for n in tensors if dependence.base(n) is dependence.base(node)}


def test_a_region_is_walked_once_however_many_results_it_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @torch.no_grad()
    def many(a: Tensor) -> tuple[Tensor, ...]:
        return tuple(a[place] for place in range(20))

    class Made(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return many(x * 2)

    graph = trace(Made(), (torch.randn(20, 3),), phases=("eval",)).graphs["eval"].graph
    walked: list[Node] = []

    def counted(node: Node) -> Any:
        walked.append(node)
        return inside(node)

    inside = dependence_module._inside
    monkeypatch.setattr(dependence_module, "_inside", counted)
    dependence = Dependence(graph)
    taken = [n for n in graph.nodes if n.target is operator.getitem]
    assert len(taken) == 20 and len({dependence.base(n) for n in taken}) == 1
    assert len(walked) == 1
