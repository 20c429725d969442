"""compose against einsum, TensorLy and autograd, and under the tracers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from opdf_compile.errors import InputError
from opdf_compile.tensor import composition as compose

Oracle = Callable[[Sequence[Tensor]], np.ndarray]
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def random_cores(bonds: Sequence[int], out: Sequence[int], into: Sequence[int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = zip(bonds[:-1], out, into, bonds[1:], strict=True)
    return [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]


EXAMPLES = [
    ((1, 6, 6, 6, 1), (3, 1, 1, 2), (2, 1, 1, 5)),
    ((1, 4, 5, 1), (2, 3, 2), (2, 1, 3)),
    ((1, 2, 1), (1, 1), (7, 1)),
    ((1, 1, 1), (1, 1), (1, 1)),
    ((1, 3, 2, 1), (4, 2, 1), (1, 1, 1)),
]


@pytest.mark.parametrize(("bonds", "out", "into"), EXAMPLES)
def test_against_einsum_and_tensorly(
    bonds: Sequence[int], out: Sequence[int], into: Sequence[int], oracle: Oracle
) -> None:
    tt_matrix = pytest.importorskip("tensorly.tt_matrix")
    cores = random_cores(bonds, out, into)
    found = compose.compose(cores)
    np.testing.assert_allclose(found.numpy(), oracle(cores), atol=1e-12)
    theirs = tt_matrix.tt_matrix_to_matrix([core.numpy() for core in cores])
    np.testing.assert_allclose(found.numpy(), theirs, atol=1e-12)
    assert found.is_contiguous()
    transposed = compose.compose(cores, transposed=True)
    assert transposed.is_contiguous()
    assert torch.equal(transposed, found.mT)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_bonds(data: st.DataObject) -> None:
    """Also bonds that are not full, which training may reach by other tools."""
    n = data.draw(st.integers(1, 5))
    small = st.lists(st.integers(1, 3), min_size=n, max_size=n)
    bonds = [1, *data.draw(st.lists(st.integers(1, 4), min_size=n - 1, max_size=n - 1)), 1]
    cores = random_cores(bonds, data.draw(small), data.draw(small))
    joined = cores[0]
    for core in cores[1:]:
        joined = torch.einsum("aijb,bklc->aikjlc", joined, core).reshape(
            1, joined.shape[1] * core.shape[1], joined.shape[2] * core.shape[2], core.shape[3]
        )
    torch.testing.assert_close(compose.compose(cores), joined[0, :, :, 0])


def test_many_cores_stay_within_torchs_axes() -> None:
    cores = random_cores((1,) * 65, (1,) * 60 + (2, 2, 1, 1), (2, 2) + (1,) * 62)
    assert compose.compose(cores).shape == (4, 4)


@pytest.mark.parametrize(("bonds", "out", "into"), EXAMPLES)
def test_gradients(bonds: Sequence[int], out: Sequence[int], into: Sequence[int]) -> None:
    cores = [core.requires_grad_() for core in random_cores(bonds, out, into)]
    assert torch.autograd.gradcheck(lambda *c: compose.compose(c), cores)
    terms = [
        f"{LETTERS[k]}{LETTERS[9 + k]}{LETTERS[16 + k]}{LETTERS[k + 1]}" for k in range(len(out))
    ]
    ends = LETTERS[9 : 9 + len(out)] + LETTERS[16 : 16 + len(out)]
    weight = compose.compose(cores)
    cotangent = torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)).double()
    theirs = torch.einsum(f"{','.join(terms)}->{ends}", *cores).reshape(weight.shape)
    wanted = torch.autograd.grad((theirs * cotangent).sum(), cores)
    found = torch.autograd.grad((weight * cotangent).sum(), cores)
    for ours, einsums in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, einsums)


class Composed(torch.nn.Module):
    def __init__(self, cores: Sequence[Tensor]) -> None:
        super().__init__()
        self.cores = torch.nn.ParameterList([torch.nn.Parameter(core) for core in cores])

    def forward(self, x: Tensor) -> Tensor:
        return x @ compose.compose(list(self.cores))


# The tracers see the function as shipped, without the tests' shape checks.
@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compose, "compose", compose.compose.__wrapped__)  # type: ignore[attr-defined]


@pytest.mark.usefixtures("plain")
def test_make_fx_sees_matrix_products_and_one_permute() -> None:
    cores = random_cores(*EXAMPLES[0])
    graph = make_fx(lambda *c: compose.compose(c))(*cores)
    calls = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert calls.count("aten.mm.default") == 3
    assert calls.count("aten.permute.default") == 1
    assert torch.equal(graph(*cores), compose.compose(cores))


@pytest.mark.usefixtures("plain")
def test_export_and_compile_take_it_whole() -> None:
    module = Composed(random_cores(*EXAMPLES[0]))
    x = torch.ones(2, 6, dtype=torch.float64)
    wanted = module(x)
    exported = torch.export.export(module, (x,)).module()
    assert torch.equal(exported(x), wanted)
    with warnings.catch_warnings():
        # Dynamo warns where it traces through a cache.
        warnings.filterwarnings("error", message=".*lru_cache.*")
        compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), wanted)


@pytest.mark.parametrize(
    ("shapes", "sentence"),
    [
        ([(1, 2, 2, 3), (4, 2, 2, 1)], "neighbouring cores must share their bond"),
        ([(2, 2, 2, 3), (3, 2, 2, 1)], "neighbouring cores must share their bond"),
        ([(1, 2, 2, 3), (3, 2, 2, 2)], "neighbouring cores must share their bond"),
        ([], "cores must have 4 axes"),
    ],
)
def test_what_is_no_chain_is_refused(shapes: list[tuple[int, ...]], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        compose.compose([torch.zeros(shape) for shape in shapes])


# An order is a tree over the cores: a core's place, or a pair of trees.
Tree = Any


def trees(first: int, last: int) -> list[Tree]:
    if first == last:
        return [first]
    return [
        (left, right)
        for cut in range(first, last)
        for left in trees(first, cut)
        for right in trees(cut + 1, last)
    ]


def contract(tree: Tree, cores: Sequence[Tensor], results: list[int]) -> Tensor:
    """Multiply out in the order of a tree, noting the entries of each product."""
    if isinstance(tree, int):
        return cores[tree]
    left, right = (contract(part, cores, results) for part in tree)
    made = left.reshape(-1, left.shape[-1]) @ right.reshape(right.shape[0], -1)
    results.append(made.numel())
    return made.reshape(left.shape[0], -1, right.shape[-1])


def counted(tree: Tree, cores: Sequence[Tensor]) -> tuple[int, int, int]:
    """FLOPs forward, FLOPs backward and saved entries of one order, on real autograd."""
    results: list[int] = []
    with FlopCounterMode(display=False) as counter:
        weight = contract(tree, cores, results)
        forward = counter.get_total_flops()
        torch.autograd.grad(weight.sum(), cores)
    return forward, counter.get_total_flops() - forward, sum(results[:-1])


CHAINS = [
    ((1, 6, 6, 6, 1), (3, 1, 1, 2), (2, 1, 1, 5)),
    ((1, 4, 8, 8, 4, 1), (2, 2, 2, 2, 2), (2, 2, 1, 2, 2)),
    ((1, 2, 3, 5, 4, 2, 1), (2, 1, 3, 1, 2, 2), (1, 2, 1, 2, 1, 3)),
    ((1, 2, 2, 2, 2, 2, 1), (2, 2, 2, 2, 2, 2), (1, 1, 1, 1, 1, 1)),
    ((1, 9, 1, 9, 1), (2, 2, 2, 2), (2, 2, 2, 2)),
]


@pytest.mark.parametrize(("bonds", "out", "into"), CHAINS)
def test_the_order_is_the_best_of_all_trees_forward_and_backward(
    bonds: Sequence[int], out: Sequence[int], into: Sequence[int]
) -> None:
    cores = [core.requires_grad_() for core in random_cores(bonds, out, into)]
    every = [counted(tree, cores) for tree in trees(0, len(out) - 1)]
    assert all(backward == 2 * forward for forward, backward, _saved in every)
    order = compose.contraction_order(
        tuple(bonds), tuple(i * j for i, j in zip(out, into, strict=True))
    )
    best = min((forward + backward, saved) for forward, backward, saved in every)
    assert (6 * order.multiply_adds, order.saved) == best
    # The checker can fail: other trees cost more, or save more.
    assert max((forward + backward, saved) for forward, backward, saved in every) > best


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_the_order_is_the_best_of_any_chain(data: st.DataObject) -> None:
    n = data.draw(st.integers(2, 6))
    bonds = (1, *data.draw(st.lists(st.integers(1, 6), min_size=n - 1, max_size=n - 1)), 1)
    products = tuple(data.draw(st.lists(st.integers(1, 4), min_size=n, max_size=n)))

    def price(tree: Tree) -> tuple[int, int, int, int]:
        """First and last core, multiply-adds, and saved entries with the last product's."""
        if isinstance(tree, int):
            return tree, tree, 0, 0
        (first, cut, *left), (_start, last, *right) = (price(part) for part in tree)
        size = bonds[first] * math.prod(products[first : last + 1]) * bonds[last + 1]
        return first, last, left[0] + right[0] + size * bonds[cut + 1], left[1] + right[1] + size

    full = math.prod(products)
    best = min((p[2], p[3] - full) for p in map(price, trees(0, n - 1)))
    order = compose.contraction_order(bonds, products)
    assert (order.multiply_adds, order.saved) == best


def test_of_orders_of_equal_cost_the_one_that_saves_least_is_taken() -> None:
    """(0 1) 2: 96 + 48, keeps 16.  0 (1 2): 72 + 72, keeps 18."""
    order = compose.contraction_order((1, 6, 4, 1), (4, 1, 3))
    assert [(step.position, step.multiply_adds) for step in order] == [(0, 96), (0, 48)]
    assert order.saved == 16
