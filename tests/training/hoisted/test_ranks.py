"""Who composes what: the rule alone; the processes are in tests/distributed."""

from __future__ import annotations

import random
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from opdf_compile.passes.hoist import program_parts, weight_program
from opdf_compile.planning.choose import plan
from opdf_compile.training.hoisted.ranks import ProgramRanks, assign, part_costs, share_out

Costs = dict[tuple[str, ...], tuple[float, float]]


def shares(pairs: list[tuple[int, int]]) -> Costs:
    """Costs of parts p0, p1, .. as shares of 1 in each of the two kinds."""
    time, memory = (max(sum(pair[kind] for pair in pairs), 1) for kind in (0, 1))
    return {(f"p{k}",): (t / time, m / memory) for k, (t, m) in enumerate(pairs)}


def loads(costs: Costs, owners: dict[str, int], ranks: int) -> list[tuple[float, float]]:
    """What each rank carries of both kinds."""
    return [
        (
            sum(cost[0] for keys, cost in costs.items() if owners[keys[0]] == rank),
            sum(cost[1] for keys, cost in costs.items() if owners[keys[0]] == rank),
        )
        for rank in range(ranks)
    ]


pairs = st.lists(st.tuples(st.integers(1, 1000), st.integers(1, 1000)), min_size=1, max_size=30)


@given(pairs, st.integers(1, 9))
def test_every_part_has_one_rank_and_no_rank_carries_too_much(
    given_pairs: list[tuple[int, int]], ranks: int
) -> None:
    """At each turn some rank carries at most 2 / ranks of both kinds together."""
    costs = shares(given_pairs)
    owners = assign(costs, ranks)
    assert owners.keys() == {keys[0] for keys in costs}
    assert set(owners.values()) <= set(range(ranks))
    worst = max(max(load) for load in loads(costs, owners, ranks))
    assert worst <= 2 / ranks + max(max(cost) for cost in costs.values()) + 1e-9


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=30), st.integers(1, 9))
def test_where_both_costs_agree_the_gap_is_at_most_one_part(sizes: list[int], ranks: int) -> None:
    costs = shares([(size, size) for size in sizes])
    found = [load[0] for load in loads(costs, assign(costs, ranks), ranks)]
    assert max(found) - min(found) <= max(cost[0] for cost in costs.values()) + 1e-9


@given(st.lists(st.integers(1, 50), min_size=1, max_size=7), st.integers(2, 3))
def test_where_both_costs_agree_it_is_within_a_third_of_the_optimum(
    sizes: list[int], ranks: int
) -> None:
    """Graham 1969: largest first gives at most 4/3 - 1/(3 m) of the best."""
    costs = shares([(size, size) for size in sizes])
    found = max(load[0] for load in loads(costs, assign(costs, ranks), ranks))
    best = min(
        max(
            sum(s for s, r in zip(sizes, choice, strict=True) if r == rank) for rank in range(ranks)
        )
        for choice in product(range(ranks), repeat=len(sizes))
    ) / sum(sizes)
    assert found <= (4 / 3 - 1 / (3 * ranks)) * best + 1e-9


@given(pairs, st.integers(1, 9), st.randoms(use_true_random=False))
def test_the_order_of_the_parts_does_not_matter(
    given_pairs: list[tuple[int, int]], ranks: int, shuffler: random.Random
) -> None:
    """Ranks must agree; a dict of another order is the same plan."""
    costs = shares(given_pairs)
    items = list(costs.items())
    shuffler.shuffle(items)
    assert assign(dict(items), ranks) == assign(costs, ranks)


def test_equal_parts_are_dealt_out_evenly() -> None:
    costs = shares([(7, 7)] * 12)
    owners = assign(costs, 4)
    assert sorted(list(owners.values()).count(rank) for rank in range(4)) == [3, 3, 3, 3]


def test_both_kinds_count() -> None:
    """Two parts of much time and two of much memory: each rank gets one of each kind."""
    costs = shares([(100, 1), (100, 1), (1, 100), (1, 100)])
    owners = assign(costs, 2)
    assert owners["p0"] != owners["p1"]
    assert owners["p2"] != owners["p3"]


def test_a_part_of_several_weights_stays_together() -> None:
    owners = assign({("a", "b"): (0.5, 0.5), ("c",): (0.3, 0.3), ("d",): (0.2, 0.2)}, 2)
    assert owners == {"a": 0, "b": 0, "c": 1, "d": 1}


def test_more_ranks_than_parts_leave_ranks_without_work() -> None:
    assert assign({("a",): (0.6, 0.6), ("b",): (0.4, 0.4)}, 4) == {"a": 0, "b": 1}
    assert assign({}, 3) == {}


def test_costs_of_a_plan_are_shares_of_one() -> None:
    model = nn.Sequential(nn.Linear(32, 64), nn.Linear(64, 16), nn.Conv1d(16, 8, 3))
    made = plan(model, cores=3, min_size=1)
    parts = program_parts(weight_program(made), [entry.key for entry in made.entries])
    costs = part_costs(parts, made)
    assert [keys for (keys,) in costs] == ["0.weight", "1.weight", "2.weight"]
    for kind in (0, 1):
        assert sum(cost[kind] for cost in costs.values()) == pytest.approx(1, abs=1e-12)
    flops = sum(entry.cost.step_flops for entry in made.entries)
    assert costs["0.weight",][0] == made.entries[0].cost.step_flops / flops


def test_without_a_group_one_process_does_all() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    made = plan(model, min_size=1)
    parts = program_parts(weight_program(made), [entry.key for entry in made.entries])
    ranks = share_out(parts, made, None)
    assert (ranks.size, ranks.rank, ranks.owners) == (1, 0, {})
    assert all(ranks.mine(part) for part in parts)
    flags = [True, False]
    assert ranks.any(flags, {}) == flags
    value = {"0.weight": torch.ones(1)}
    assert ranks.gather(value, {}) == value
    ranks.deliver([], {}, keep=True)
    assert isinstance(ranks, ProgramRanks)
