"""The work of the search for regions grows with the graph, also where it finds none."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from quick import quick
from torch import Tensor, nn
from work import calls, require_linear

import opdf_compile as opdf
from opdf_compile.passes.branch_regions import RegionFinder


def times(n: int, x: Tensor) -> Tensor:
    for _ in range(n):
        x = x * 1.5
    return x


def in_place(n: int, x: Tensor) -> Tensor:
    x = x * 1.5
    for _ in range(n):
        x = x.mul_(1.5)
    return x


def sums(n: int, x: Tensor) -> Tensor:
    for _ in range(n):
        x = x + x * 0.5
    return x


def shifts(n: int, x: Tensor) -> Tensor:
    for _ in range(n):
        x = (x + 0.5) * 1.5
    return x


class Chain(nn.Module):
    """Convolutions that are no one layer, with a long chain before or behind them.

    Args:
        body: What to do, with the number of its steps, the two convolutions and the input.
    """

    def __init__(self, n: int, body: Callable[[int, Chain, Tensor], Tensor]) -> None:
        super().__init__()
        self.n, self.body = n, body
        self.one, self.two = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def both(self, x: Tensor) -> Tensor:
        return self.two(self.one(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.n, self, x)


CHAINS: dict[str, Callable[[int, Chain, Tensor], Tensor]] = {
    "no layer": lambda n, m, x: times(n, x),
    "no layer, in place": lambda n, m, x: in_place(n, x),
    "no layer, sums": lambda n, m, x: sums(n, x),
    "behind one layer": lambda n, m, x: times(n, m.one(x)),
    "behind two": lambda n, m, x: times(n, m.both(x)),
    "between two": lambda n, m, x: m.two(times(n, m.one(x))),
    "before two": lambda n, m, x: m.both(times(n, x)),
    "before two, shifts": lambda n, m, x: m.both(shifts(n, x)),
    "before two, in place": lambda n, m, x: m.both(in_place(n, x)),
}


# Of each place of the chain one in every run, and what is done in place.
@pytest.mark.parametrize("name", quick(CHAINS, {"no layer, in place", "behind two", "between two"}))
def test_twice_the_chain_is_twice_the_work(name: str) -> None:
    def work(n: int) -> int:
        model, x = Chain(n, CHAINS[name]), torch.randn(2, 4, 8, 8)
        graph = opdf.trace(model.eval(), (x,), phases=("eval",)).graphs["eval"]
        list(RegionFinder(graph))  # Fills the caches.
        return calls(lambda: list(RegionFinder(graph)))

    require_linear(work, 20)
