"""Plans that put branches beside convolutions: what is chosen, what it costs, what is refused."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest
import torch
from sites import Stack, batch
from torch import nn

import opdf_compile as opdf
from opdf_compile.errors import PlanError


def traced(model: nn.Module | None = None) -> opdf.Traced:
    return opdf.trace(model, (batch(dtype=torch.float32),)) if model else stack()


@functools.cache
def stack() -> opdf.Traced:
    """One for all plans of it: planning changes no graph."""
    return opdf.trace(Stack(), (batch(dtype=torch.float32),))


def test_every_weight_is_a_site_or_a_refusal() -> None:
    plan = opdf.plan(traced(), parametrization="repvgg")
    assert [(s.key, s.spec.branches) for s in plan.sites] == [
        ("body.0.weight", ("point",)),
        ("body.3.weight", ("point", "identity")),
    ]
    assert [r.key for r in plan.refusals] == ["head.weight"]
    assert plan.entries == ()


def test_what_it_costs() -> None:
    """Counted by hand: 4 images of 8 x 8, 3 and 6 channels."""
    plan = opdf.plan(traced(), parametrization="repvgg")
    first, second = plan.sites
    positions = 4 * 8 * 8
    assert first.added == 3 * 6 + 2 * 6
    assert first.cost.forward_flops == 2 * positions * 3 * 6
    assert first.activation_bytes == 4 * positions * 6
    assert second.added == 6 * 6 + 2 * 6 + 2 * 6
    assert second.cost.forward_flops == 2 * positions * 6 * 6
    assert plan.cost.step_flops == 3 * 2 * positions * (3 * 6 + 6 * 6)
    assert "point+identity" in str(plan)


def test_the_inner_layers_of_a_strided_branch_see_more_positions() -> None:
    conv = nn.Conv2d(3, 6, 3, stride=2, padding=1)
    plan = opdf.plan(traced(nn.Sequential(conv, nn.BatchNorm2d(6))), parametrization="dbb")
    (site,) = plan.sites
    inner, outer = 4 * 8 * 8, 4 * 4 * 4
    point = 2 * outer * 3 * 6
    full = 2 * inner * 3 * 3 + 2 * outer * 3 * 6 * 9
    average = 2 * inner * 3 * 6
    assert site.cost.forward_flops == point + full + average


def test_a_plan_survives_its_file(tmp_path: Any) -> None:
    plan = opdf.plan(traced(), parametrization="mobileone(copies=2, start=published)")
    plan.save(tmp_path / "plan.json")
    read = opdf.Plan.load(tmp_path / "plan.json")
    assert read.sites == plan.sites and read.dumps() == plan.dumps()
    assert plan.request == {"parametrization": "mobileone(copies=2, start=published)"}


def test_a_plan_without_sites_has_the_file_that_it_had() -> None:
    assert "sites" not in opdf.plan(traced(), min_size=1).to_json()


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a branch": ({"branches": ["pointy"]}, "a branch is called 'pointy'"),
    "no branch": ({"branches": []}, "wanted a list of names"),
    "twice": ({"branches": ["point", "point"]}, "wanted each name once"),
    "a branch that does not fit": ({"branches": ["identity"]}, "it makes 6 channels of 3"),
    "a start": ({"start": "warm"}, "start of a site is 'warm'"),
    "a seed": ({"seed": -1}, "seed of a site is -1"),
    "a stride": ({"stride": [0, 1]}, "stride of a site is"),
    "groups": ({"groups": 5}, "groups of a site is 5"),
    "a momentum": ({"momentum": 2.0}, "momentum of a site is 2.0"),
    "a dtype": ({"dtype": "int8"}, "dtype of a site is 'int8'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_plan_edited_wrongly(case: str) -> None:
    value = json.loads(opdf.plan(traced(), parametrization="repvgg").dumps())
    edit, message = WRONG[case]
    value["sites"][0]["spec"] |= edit
    with pytest.raises(PlanError, match=rf"sites\.0 \(body\.0\.weight\): .*{message}"):
        opdf.Plan.from_json(value)


def test_a_plan_of_another_student() -> None:
    plan = opdf.plan(traced(), parametrization="repvgg")
    with pytest.raises(PlanError, match="gives 'body.0.weight' the site"):
        opdf.expand(traced(Stack(channels=8)), plan)


@pytest.mark.parametrize("sizes", [{"cores": 3}, {"scale": 2.0}, {"overhead": 1.5}])
def test_sizes_are_for_cores(sizes: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match="has no cores; leave it out"):
        opdf.plan(traced(), parametrization="repvgg", **sizes)


def test_a_module_without_a_graph() -> None:
    with pytest.raises(PlanError, match="modules do not tell who reads a convolution"):
        opdf.plan(Stack(), parametrization="repvgg")


@pytest.mark.parametrize(
    ("form", "conv", "message"),
    [
        ("repvgg", nn.Conv2d(3, 6, 4, padding=1), "even size"),
        ("repvgg", nn.Conv2d(3, 6, 3, padding=2, dilation=2), "has the dilation"),
        ("repvgg", nn.Conv2d(3, 6, 3), "branches of other sizes need"),
        ("repvgg", nn.Conv2d(3, 6, 1), "kernel of size 1 already and makes 6 channels of 3"),
        ("acnet", nn.Conv2d(3, 6, (1, 3), padding=(0, 1)), "two axes longer than 1"),
        ("dilated", nn.Conv2d(3, 6, 5, padding=2), "is no depthwise convolution"),
        ("dilated", nn.Conv2d(3, 3, 3, padding=1, groups=3), "reach over 5"),
        ("mobileone(copies=1)", nn.Conv2d(3, 6, 1), "kernel of size 1 already"),
        ("mobileone", nn.Conv2d(3, 6, 4, padding="same"), "has unlike padding on its two sides"),
    ],
)
def test_why_a_site_has_no_branches(form: str, conv: nn.Conv2d, message: str) -> None:
    model = nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels))
    with pytest.raises(PlanError, match=message):
        opdf.plan(traced(model), parametrization=form, min_size=1)


def test_how_many_copies() -> None:
    with pytest.raises(PlanError, match="mobileone has copies=65"):
        opdf.plan(traced(), parametrization="mobileone(copies=65)")


def test_the_published_kernels_beside_a_large_one() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 7, padding=3, groups=3), nn.BatchNorm2d(3))
    (site,) = opdf.plan(traced(model), parametrization="dilated").sites
    assert site.spec.branches == ("dilated5x1", "dilated3x2", "dilated3x3")
