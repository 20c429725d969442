"""The work of match, plan, expand and fold grows with the size of the graph, not with its square.

Twice the layers make at most twice the calls; a part that grows with the square makes the ratio
larger, up to 4.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from quick import quick
from torch import Tensor, nn
from work import calls, require_linear

import opdf_compile as opdf
from opdf_compile.graph.traced import Traced

LAYERS = 12


class Cat(nn.Module):
    """Every layer's output is read by one op of many operands."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([layer(x) for layer in self.layers], -1)


class Scores(nn.Module):
    """Products of two activations, which a walk to the weights must not follow to the input."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            q = layer(x)
            x = x + torch.matmul(torch.matmul(q, x.mT), x)
        return x


class Grouped(nn.Module):
    """A nested graph that takes every weight as an operand."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*[nn.Linear(8, 8) for _ in range(layers)])

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.layers(x)


def sequential(layers: int) -> nn.Module:
    # Sizes that all differ: no two weights have the same options.
    sizes = [8 + index % 97 for index in range(layers + 1)]
    return nn.Sequential(*[nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False)])


STUDENTS: dict[str, Callable[[int], nn.Module]] = {
    "sequential": sequential,
    "cat": Cat,
    "scores": Scores,
    "no_grad": Grouped,
}
_TRACED: dict[tuple[str, int], Traced] = {}


def traced(name: str, layers: int) -> Traced:
    """A student's graphs; made once, since torch.export takes most of the time."""
    if (name, layers) not in _TRACED:
        torch.manual_seed(0)
        model = STUDENTS[name](layers)
        _TRACED[name, layers] = opdf.trace(model, (torch.randn(2, 3, 8),), dynamic=False)
    return _TRACED[name, layers]


# Of products of activations the walk is counted in tests/graph/test_long_tail.py.
@pytest.mark.parametrize("name", quick(STUDENTS, set(STUDENTS) - {"scores"}))
def test_match(name: str) -> None:
    def work(layers: int) -> int:
        graphs = traced(name, layers)
        return calls(lambda: opdf.match(graphs))

    require_linear(work, LAYERS)


@pytest.mark.parametrize("request_", [{"cores": 3}, {"scale": 2.0}, {"overhead": 9.0}], ids=str)
def test_plan(request_: dict[str, Any]) -> None:
    def work(layers: int) -> int:
        names = [f"{index}.weight" for index in range(layers)]
        opdf.plan(traced("sequential", layers), include=names, **request_)  # Fills the caches.
        return calls(lambda: opdf.plan(traced("sequential", layers), include=names, **request_))

    require_linear(work, LAYERS)


def test_expand_move_and_fold() -> None:
    def made(layers: int) -> opdf.Expanded:
        student = traced("cat", layers)
        expanded = opdf.expand(student, opdf.plan(student, cores=2))
        expanded.half().float()
        opdf.fold(expanded)
        return expanded

    def work(layers: int) -> int:
        made(layers)  # Traces the compose subgraph of each spec once.
        return calls(lambda: made(layers))

    require_linear(work, LAYERS)


def test_hoist() -> None:
    def work(layers: int) -> int:
        student = traced("cat", layers)
        plan = opdf.plan(student, cores=2)
        opdf.hoist(student.source, plan)
        return calls(lambda: opdf.fold(opdf.hoist(student.source, plan)))

    require_linear(work, LAYERS)


def test_a_quadratic_pass_is_refused() -> None:
    def work(layers: int) -> int:
        graphs = traced("cat", layers)
        graph = graphs.graphs["train"].graph

        def square() -> None:
            opdf.match(graphs)
            for _node in graph.nodes:  # Two calls for every pair of nodes.
                assert all(len(o.users) >= 0 and hash(o) != id(graph) for o in graph.nodes)

        return calls(square)

    with pytest.raises(AssertionError, match="times the calls"):
        require_linear(work, LAYERS)
