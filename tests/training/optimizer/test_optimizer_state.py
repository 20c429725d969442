"""State by weight and back: rows of a stack, what cannot be one, what is dropped."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.training.hoisted.unit import Unit
from opdf_compile.training.optimizer import weight_state as named
from opdf_compile.training.optimizer.inner_state import joined_state, labels_of

KEYS = ("0.weight", "1.weight")


def stepped(batched: bool) -> tuple[Unit, torch.optim.Optimizer, opdf.WeightProgram]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    program = opdf.hoist(model, opdf.plan(model, cores=2), batched=batched)
    inner = torch.optim.AdamW(program.parameters(), lr=0.1)
    model(torch.randn(4, 8)).square().mean().backward()
    program.backward()
    inner.step()
    return program.units[0], inner, program


def test_a_batch_is_given_by_its_rows() -> None:
    unit, inner, program = stepped(batched=True)
    states = named.weight_states(unit, inner.state)
    assert tuple(states) == KEYS
    for row, key in enumerate(KEYS):
        for place, core in enumerate(program.cores(key)):
            kept = inner.state[unit.storage[place]]
            assert torch.equal(states[key][f"cores.{place}"], core)
            assert torch.equal(states[key][f"cores.{place}.exp_avg"], kept["exp_avg"][row])
            assert torch.equal(states[key][f"cores.{place}.step"], torch.tensor(1.0))
    assert not torch.equal(*(states[key]["cores.0.exp_avg"] for key in KEYS)), "the control"


def test_a_single_weight_is_given_as_it_is() -> None:
    unit, inner, _program = stepped(batched=False)
    states = named.weight_states(unit, inner.state)
    assert tuple(states) == KEYS[:1]
    assert states[KEYS[0]]["cores.1.exp_avg"] is inner.state[unit.storage[1]]["exp_avg"]


@pytest.mark.parametrize("batched", [True, False])
def test_core_states_is_the_inverse(batched: bool) -> None:
    unit, inner, _program = stepped(batched)
    states = named.weight_states(unit, inner.state)
    assert named.joins(unit, states)
    back = named.core_states(unit, states)
    assert len(back) == len(unit.storage)
    for core, state in back.items():
        kept = inner.state[core]
        assert state.keys() == kept.keys()
        for key, value in state.items():
            assert torch.equal(value, kept[key])
            assert value.data_ptr() != kept[key].data_ptr(), "a copy"


def other_step(states: dict[str, Any]) -> None:
    states[KEYS[1]]["cores.0.step"] = torch.tensor(2.0)


def other_number(states: dict[str, Any]) -> None:
    for place, key in enumerate(KEYS):
        states[key]["cores.1.count"] = place


def missing(states: dict[str, Any]) -> None:
    del states[KEYS[1]]["cores.1.exp_avg"]


@pytest.mark.parametrize("change", [other_step, other_number, missing])
def test_members_that_differ_do_not_join(change: Any) -> None:
    unit, inner, _program = stepped(batched=True)
    states = named.weight_states(unit, inner.state)
    assert named.joins(unit, states)
    change(states)
    assert not named.joins(unit, states)


def test_moments_of_members_may_differ() -> None:
    unit, inner, _program = stepped(batched=True)
    states = named.weight_states(unit, inner.state)
    states[KEYS[1]]["cores.0.exp_avg"] = torch.full_like(states[KEYS[1]]["cores.0.exp_avg"], 7.0)
    assert named.joins(unit, states)
    back = named.core_states(unit, states)[unit.storage[0]]["exp_avg"]
    assert bool((back[1] == 7.0).all())
    assert torch.equal(back[0], inner.state[unit.storage[0]]["exp_avg"][0])


def test_giving_a_state_replaces_everything() -> None:
    unit, inner, _program = stepped(batched=False)
    first, second = unit.storage
    wide = torch.ones(first.shape, dtype=torch.float64)
    labels = labels_of([unit], {id(p): str(id(p)) for p in inner.param_groups[0]["params"]})
    states = {first: {"exp_avg": wide, "step": torch.tensor(5.0)}}
    inner.load_state_dict(joined_state(inner, states, {"state": {}, "top": {}}, labels))
    assert set(inner.state[first]) == {"exp_avg", "step"}
    assert inner.state[first]["exp_avg"].dtype == torch.float32, "torch's own rule"
    assert second not in inner.state


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        (torch.ones(2), torch.ones(2), True),
        (torch.ones(2), torch.zeros(2), False),
        (torch.ones(2), torch.ones(3), False),
        (torch.tensor(1.0), 1.0, False),
        (1.0, torch.tensor(1.0), False),
        ((0.9, 0.99), (0.9, 0.99), True),
        ([0.9], (0.9,), False),
        ({"a": [torch.ones(2)]}, {"a": [torch.ones(2)]}, True),
        ({"a": [torch.ones(2)]}, {"a": [torch.zeros(2)]}, False),
        ({"a": 1}, {"b": 1}, False),
        (None, 0.0, False),
    ],
)
def test_equal_answers_with_a_truth_value(left: Any, right: Any, same: bool) -> None:
    assert named.equal(left, right) is same


def test_own_shares_no_memory_however_deep_the_tensors_lie() -> None:
    tensor: Tensor = torch.ones(2)
    assert named.own(tensor).data_ptr() != tensor.data_ptr()
    assert named.own("text") == "text"
    kept = {"a": [(tensor, {1})], "b": deque([tensor], maxlen=3), "c": np.ones(2)}
    copied = named.own(kept)
    assert copied["a"][0][0].data_ptr() != tensor.data_ptr()
    assert copied["b"][0].data_ptr() != tensor.data_ptr() and copied["b"].maxlen == 3
    assert not np.shares_memory(copied["c"], kept["c"])
    assert named.equal(copied["a"], kept["a"]) and named.equal(copied["b"], kept["b"])


def test_nested_values_are_given_by_rows_and_joined_again() -> None:
    unit, inner, _program = stepped(batched=True)
    for stack in unit.storage:
        inner.state[stack] = {"0": {"deep": [stack.detach().clone(), (3, torch.ones(2))]}}
    states = named.weight_states(unit, inner.state)
    for row, key in enumerate(KEYS):
        deep = states[key]["cores.1.0"]["deep"]
        assert torch.equal(deep[0], unit.storage[1].detach()[row])
        assert deep[1][0] == 3
    assert named.joins(unit, states)
    back = named.core_states(unit, states)
    assert named.equal(back[unit.storage[1]], dict(inner.state[unit.storage[1]]))
    states[KEYS[1]]["cores.1.0"]["deep"][1] = (4, torch.ones(2))
    assert not named.joins(unit, states)
