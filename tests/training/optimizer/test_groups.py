"""Param groups: the user's hold W, the wrapped optimizer's hold the cores, options go inwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from opdf_compile.errors import InputError
from opdf_compile.training.optimizer.groups import Links, outer_groups, tensors


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape))


W, B, C = parameter(4, 4), parameter(4), parameter(1, 2, 2, 4)


def ids(group: dict[str, Any]) -> list[int]:
    return [id(p) for p in group["params"]]


def test_what_is_given_becomes_groups() -> None:
    module = nn.Linear(2, 2)
    own = list(module.parameters())
    assert outer_groups(module) == [{"params": own}]
    assert outer_groups(module.parameters()) == [{"params": own}]
    named = list(module.named_parameters())
    assert outer_groups(named) == [{"params": named}]
    assert tensors({"params": named}) == own
    assert outer_groups({"params": p, "lr": 1} for p in own) == [
        {"params": [p], "lr": 1} for p in own
    ]


def test_the_given_groups_are_not_changed() -> None:
    given = [{"params": [W], "lr": 1.0}]
    outer_groups(given)[0]["lr"] = 2.0
    assert given == [{"params": [W], "lr": 1.0}]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (W, "got a Parameter, wanted a module"),
        (7, "got a int"),
        ([], "got no parameters"),
        (iter(()), "got no parameters"),
        ([{"lr": 1}], r"has the keys \['lr'\], wanted 'params'"),
    ],
)
def test_what_is_no_group(given: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        outer_groups(given)


@pytest.mark.parametrize("split", [True, False])
def test_cores_take_the_place_of_weights(split: bool) -> None:
    outer = [{"params": [W, B], "lr": 0.1, "weight_decay": 0.5}]
    links = Links(outer, [[C]], {id(W)}, split=split)
    if split:
        assert [ids(g) for g in links.inner] == [[id(B)], [id(C)]]
        assert [g["weight_decay"] for g in links.inner] == [0.5, 0.0]
    else:
        assert [ids(g) for g in links.inner] == [[id(B), id(C)]]
        assert [g["weight_decay"] for g in links.inner] == [0.5]
    assert {g["lr"] for g in links.inner} == {0.1}
    assert links.places == [list(range(len(links.inner)))]


def test_an_empty_group_has_no_inner_group() -> None:
    outer: list[dict[str, Any]] = [{"params": []}, {"params": [W]}]
    links = Links(outer, [[], [C]], {id(W)}, split=True)
    assert links.places == [[], [0]]
    links.push(outer, links.inner)
    assert links.estimated(outer, links.inner)[0] == []


def make(**options: Any) -> tuple[list[dict[str, Any]], Links]:
    outer = [{"params": [W, B], "param_names": ["w", "b"], "weight_decay": 0.5, **options}]
    return outer, Links(outer, [[C]], {id(W)}, split=True)


def test_changed_options_go_inwards_and_decay_stays_out() -> None:
    outer, links = make(lr=0.1)
    links.push(outer, links.inner)
    outer[0] |= {"lr": 0.2, "weight_decay": 0.7, "new": 1}
    links.push(outer, links.inner)
    assert [(g["lr"], g["weight_decay"], g["new"]) for g in links.inner] == [
        (0.2, 0.7, 1),
        (0.2, 0.0, 1),
    ]
    assert [ids(g) for g in links.inner] == [[id(B)], [id(C)]], "parameters are no option"
    assert not any("param_names" in g for g in links.inner)


def test_an_option_that_did_not_change_is_not_pushed_again() -> None:
    outer, links = make(lr=0.1, estimate=1.0)
    links.push(outer, links.inner)
    links.inner[1]["estimate"] = 3.0
    links.push(outer, links.inner)
    assert links.inner[1]["estimate"] == 3.0
    outer[0]["estimate"] = 2.0
    links.push(outer, links.inner)
    assert links.inner[1]["estimate"] == 2.0


def test_a_tensor_option_is_shared_and_may_be_replaced() -> None:
    outer, links = make(lr=torch.tensor(0.1))
    links.push(outer, links.inner)
    outer[0]["lr"].fill_(0.2)
    assert all(g["lr"] == outer[0]["lr"] for g in links.inner)
    outer[0]["lr"] = torch.tensor(0.3)
    links.push(outer, links.inner)
    assert all(g["lr"] is outer[0]["lr"] for g in links.inner)


def test_only_what_an_inner_group_has_of_its_own_is_an_estimate() -> None:
    outer, links = make(lr=torch.tensor(0.1), betas=(0.9, 0.99), estimate=1.0)
    links.push(outer, links.inner)
    links.inner[0] |= {"estimate": 3.0, "count": 4}
    # The zero decay of the cores is not among them: it is how the groups are laid out.
    assert links.estimated(outer, links.inner) == [[{"estimate": 3.0, "count": 4}, {}]]
    links.inner[1]["lr"] = torch.tensor(0.1)
    assert "lr" not in links.estimated(outer, links.inner)[0][1], "equal, though another tensor"
    links.inner[1]["lr"] = torch.tensor(0.2)
    assert links.estimated(outer, links.inner)[0][1]["lr"] == torch.tensor(0.2)


def test_estimates_come_back_over_the_pushed_options() -> None:
    outer, links = make(lr=0.1, estimate=1.0)
    outer[0]["lr"] = 0.05
    links.push_all(outer, links.inner, [[{"estimate": 3.0}, {}]])
    assert [(g["lr"], g["estimate"], g["weight_decay"]) for g in links.inner] == [
        (0.05, 3.0, 0.5),
        (0.05, 1.0, 0.0),
    ]
    # A later change goes inwards, though the estimates were loaded.
    outer[0]["lr"] = 0.01
    links.push(outer, links.inner)
    assert [(g["lr"], g["estimate"]) for g in links.inner] == [(0.01, 3.0), (0.01, 1.0)]


def test_estimates_of_another_layout_are_left_out() -> None:
    outer, links = make(lr=0.1)
    links.push_all(outer, links.inner, [[{"lr": 7.0}]])
    assert [g["lr"] for g in links.inner] == [0.1, 0.1]


def test_a_group_without_decay_may_be_left_whole() -> None:
    outer = [{"params": [W, B], "lr": 0.1, "weight_decay": 0.0}]
    shares = {id(C): 0.5}
    split = Links(outer, [[C]], {id(W)}, split=True, shares=shares)
    assert [ids(g) for g in split.inner] == [[id(B)], [id(C)]]
    links = Links(outer, [[C]], {id(W)}, split=True, whole=[0], shares=shares)
    assert [ids(g) for g in links.inner] == [[id(B), id(C)]]
    assert links.places == [[0]]
