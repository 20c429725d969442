"""Chain and Cost: exact integers against the paper's figures and against counted work."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from opdf_compile.errors import InputError
from opdf_compile.tensor import composition as compose
from opdf_compile.tensor.chain import Chain
from opdf_compile.tensor.composition import contraction_order
from opdf_compile.tensor.cost import Cost, chain_cost
from opdf_compile.tensor.modes import chain_modes

modes = st.integers(2, 6).flatmap(
    lambda n: st.tuples(*[st.lists(st.integers(1, 3), min_size=n, max_size=n).map(tuple)] * 2)
)


@pytest.mark.parametrize(("cores", "scale"), [(2, 1.5625), (3, 2.125), (5, 3.25)])
@pytest.mark.parametrize("sizes", [(3072, 768), (768, 3072), (768, 768)])
def test_scale_of_the_paper(sizes: tuple[int, int], cores: int, scale: float) -> None:
    chain = Chain(*chain_modes(*sizes, cores))
    assert chain.parameters / math.prod(sizes) == scale
    assert max(chain.bonds) == (1152 if 3072 in sizes else 576)


@given(modes)
def test_added_parameters_are_equation_4(pair: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    out_modes, in_modes = pair
    chain = Chain(out_modes, in_modes)
    p = [i * j for i, j in zip(out_modes, in_modes, strict=True)]
    d = [min(math.prod(p[:k]), math.prod(p[k:])) for k in range(len(p) + 1)]
    assert chain.bonds == tuple(d)
    assert chain.added == sum(d[k] * p[k] * d[k + 1] for k in range(len(p))) - math.prod(p)
    # Full bonds bound each core by the weight, so no plan can ask for an absurd expansion.
    assert 0 <= chain.added <= (chain.cores - 1) * chain.rows * chain.cols
    assert chain.core_shapes == tuple(zip(d, out_modes, in_modes, d[1:], strict=False))


def test_the_chain_family_adds_d_squared_per_core() -> None:
    chain = Chain((8, 1, 1, 8), (32, 1, 1, 18))
    assert chain.added == 3 * 144**2


def test_the_order_of_an_ffn_matrix_costs_what_the_paper_note_says() -> None:
    chain = Chain(*chain_modes(3072, 768, 5))
    order = contraction_order(chain.bonds, chain.products)
    left_to_right = 3 * 2048 * 1152 * 1152 + 2048 * 1152 * 1152
    assert order.multiply_adds == 3 * 1152**3 + 2048 * 1152**2
    assert round(order.multiply_adds / 1e9, 1) == 7.3
    assert round(left_to_right / 1e9, 1) == 10.9
    assert str(order).count("\n") == 3
    assert "(2048 x 1152) (1152 x 1152) 2,717,908,992 multiply-adds" in str(order)


def by_trial(chain: Chain) -> int:
    """The fewest multiply-adds over every order of contracting neighbours."""
    best = None
    for order in itertools.permutations(range(1, chain.cores)):
        cuts = [0, *range(1, chain.cores), chain.cores]
        work = 0
        for cut in order:
            place = cuts.index(cut)
            first, last = cuts[place - 1], cuts[place + 1]
            outer = chain.bonds[first] * math.prod(chain.products[first:last]) * chain.bonds[last]
            work += outer * chain.bonds[cut]
            del cuts[place]
        best = work if best is None else min(best, work)
    assert best is not None
    return best


@settings(max_examples=60)
@given(modes)
def test_the_order_is_optimal(pair: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    chain = Chain(*pair)
    assert contraction_order(chain.bonds, chain.products).multiply_adds == by_trial(chain)


class LargestOutput(TorchDispatchMode):
    """Records the entries of the largest tensor that any operator returns."""

    entries = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> torch.Tensor:
        result = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten.mm.default, torch.ops.aten.clone.default):
            self.entries = max(self.entries, result.numel())
        return result


@settings(max_examples=25, deadline=None)
@given(modes)
def test_cost_against_counted_work(pair: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    chain = Chain(*pair)
    cost = chain_cost(chain)
    cores = [torch.ones(shape, requires_grad=True) for shape in chain.core_shapes]
    with FlopCounterMode(display=False) as forward:
        weight = compose.compose(cores)
    with FlopCounterMode(display=False) as backward:
        weight.sum().backward()
    with LargestOutput() as largest, torch.no_grad():
        compose.compose(cores)
    assert cost.forward_flops == forward.get_total_flops()
    assert cost.backward_flops == backward.get_total_flops()
    assert cost.largest_intermediate == largest.entries
    assert cost.parameters == sum(core.numel() for core in cores)


def test_costs_add_up_and_weights_are_composed_one_after_the_other() -> None:
    total = sum([Cost(10, 4, 100, 200, 7, 3, 50), Cost(1, 1, 10, 20, 9, 1, 5)], Cost())
    assert total == Cost(11, 5, 110, 220, 9, 4, 55)
    assert total.step_flops == 330


@pytest.mark.parametrize(
    ("out_modes", "in_modes", "sentence"),
    [
        ((2, 0), (1, 1), "out_modes must be a tuple of positive integers"),
        ((2, 2), (1, True), "in_modes must be a tuple of positive integers"),
        ([2, 2], (1, 1), "out_modes must be a tuple"),
        ((2, 2), (1, 1, 1), "found 2 out_modes and 3 in_modes"),
        ((2,), (2,), "2 to 64 cores are wanted, found 1"),
        ((1,) * 65, (1,) * 65, "found 65"),
    ],
)
def test_wrong_modes_are_refused(out_modes: Any, in_modes: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        Chain(out_modes, in_modes)
