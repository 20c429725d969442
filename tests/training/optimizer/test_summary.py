"""What an Overparam says about itself, as text, HTML and JSON; every figure counted anew."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest
import torch
from torch import nn

import opdf_compile as opdf
from opdf_compile.training.optimizer.summary import Summary


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Embedding(50, 16),
        nn.Linear(16, 24),
        nn.Linear(24, 24),
        nn.Linear(24, 24).requires_grad_(False),
        nn.Linear(24, 2),
    )


def counted(opt: opdf.Overparam) -> tuple[int, int]:
    """Trained and deployed, from what the wrapped optimizer really steps."""
    stepped = [p for group in opt.inner.param_groups for p in group["params"] if p.requires_grad]
    own = [p for group in opt.param_groups for p in group["params"] if p.requires_grad]
    return sum(p.numel() for p in stepped), sum(p.numel() for p in own)


def test_the_figures_are_those_of_the_optimizer() -> None:
    opt = opdf.Overparam(network(), cores=3)
    summary = opt.summary()
    assert (summary.trained, summary.deployed) == counted(opt)
    assert summary.held == sum(
        c.numel() for e in opt.plan.entries for c in opt.program.cores(e.key)
    )
    assert [e.key for e in summary.plan.entries] == ["1.weight", "2.weight"]
    assert {r.key for r in summary.refusals} == {"3.weight", "4.weight"}
    assert summary == opt.summary()


def test_parameters_in_no_group_are_not_trained() -> None:
    model = network()
    opt = opdf.Overparam(model[1].parameters(), module=model, cores=3)
    summary = opt.summary()
    assert (summary.trained, summary.deployed) == counted(opt)
    assert summary.deployed == 16 * 24 + 24
    opt.add_param_group({"params": model[2].parameters()})
    assert opt.summary().deployed == 16 * 24 + 24 + 24 * 24 + 24


def test_the_text() -> None:
    opt = opdf.Overparam(network(), cores=3)
    trained, deployed = counted(opt)
    text = str(opt.summary())
    assert re.search(r"^1\.weight +mpo +24x16 ", text, re.MULTILINE)
    assert f"{trained:,} parameters trained, {deployed:,} deployed; AdamW steps the cores" in text
    assert "weight decay acts on W\n" in text
    assert "3.weight is frozen" in text
    assert "composed again" not in text
    assert "rank" not in text
    flops = opt.plan.cost.step_flops
    assert f"a step adds {flops:,} FLOP, whatever the batch, in 2 products of cores" in text
    # 79,872 and 61,440 of 141,312 FLOPs.
    assert "dearest to compose: 2.weight (57%), 1.weight (43%)" in text


@pytest.mark.parametrize(
    ("make", "options", "said"),
    [
        (torch.optim.SGD, {}, "SGD steps the cores, weight decay acts on W"),
        (torch.optim.Adam, {"decay": "cores"}, "Adam steps the cores, weight decay acts on the co"),
        (torch.optim.LBFGS, {}, "LBFGS steps the cores, weight decay acts on nothing"),
        (torch.optim.SGD, {"recompute": True}, ", composed again in the backward"),
        (torch.optim.SGD, {"batched": True}, r"in 1 product of cores \(1 batched\)"),
    ],
)
def test_the_text_of_options(make: Any, options: dict[str, Any], said: str) -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    assert re.search(said, str(opdf.Overparam(model, make, cores=3, **options).summary()))


@pytest.mark.parametrize(
    ("flops", "said"),
    [(999_999, "999,999 FLOP"), (10**6, "1 MFLOP"), (2_345 * 10**6, "2.35 GFLOP")],
)
def test_flops_have_a_unit(flops: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = opdf.Overparam(nn.Linear(16, 16), cores=3).summary()
    cost = type(summary.plan.cost)(parameters=768, forward_flops=flops)
    monkeypatch.setattr(type(summary.plan), "cost", cost)
    assert f"a step adds {said}, " in str(summary)


def test_a_share_says_how_much_it_holds() -> None:
    summary = opdf.Overparam(nn.Linear(16, 16), cores=3).summary()
    shared = Summary(**{**vars(summary), "rank": (1, 4), "held": 100})
    assert "rank 1 of 4 holds 100 of 768 core parameters" in str(shared)


class Text(HTMLParser):
    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.said: list[str] = []
        self.feed(source)
        assert self.open == [], "every tag is closed"

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.said.append(data)


def test_html_says_what_the_text_says() -> None:
    model = nn.ModuleDict({"a<b>": nn.Linear(16, 16), "c<d>": nn.Linear(3, 3)})
    summary = opdf.Overparam(model, cores=3).summary()
    html = summary._repr_html_()
    assert "<b>" not in html
    said = Text(html).said
    assert "a<b>.weight" in said
    assert set(summary.lines()) <= set(said)
    assert any(line.startswith("c<d>.weight has 9 parameters") for line in said)


def test_json() -> None:
    opt = opdf.Overparam(network(), torch.optim.SGD, cores=3, lr=0.1, recompute=True)
    again = opt.plan.cost.again_flops
    found = json.loads(json.dumps(opt.summary().to_json()))
    assert found.pop("refusals")[0]["key"] == "3.weight"
    assert found == {
        "schema": "opdf-summary/1",
        "trained": counted(opt)[0],
        "deployed": counted(opt)[1],
        "scale": opt.plan.scale,
        "step_flops": opt.plan.cost.step_flops + again,
        "predicted_step": None,
        "peak_bytes": opt.plan.peak_bytes,
        "optimizer": "SGD",
        "decay": "W",
        "dearest": [
            {"key": "2.weight", "step_flops": 79_872},
            {"key": "1.weight", "step_flops": 61_440},
        ],
        "units": 2,
        "batches": 0,
        "recompute": True,
        "rank": 0,
        "ranks": 1,
        "held": opt.plan.cost.parameters,
    }


def test_a_traced_plan_predicts_the_step() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    plan = opdf.plan(opdf.trace(model, (torch.randn(8, 16),)), cores=3)
    summary = opdf.Overparam(model, plan=plan).summary()
    assert summary.to_json()["predicted_step"] == plan.overhead > 1
    assert f"predicted step {plan.overhead:.2f}x" in str(summary)
    again = opdf.Overparam(model, plan=plan, recompute=True).summary().to_json()
    # Two chains of 16 x 16 by 16 x 16 by 16 x 16, of which the first product is made twice.
    assert again["step_flops"] - plan.cost.step_flops == 2 * 2 * 16**3
    assert again["predicted_step"] == 1 + again["step_flops"] / plan.student_step_flops


def test_branches_are_counted_once() -> None:
    """Two plain layers with a norm between: one has branches, the other cores."""
    student = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 8, 3))
    traced = opdf.trace(student, (torch.randn(2, 4, 8, 8),))
    rules = {"include": ["2.*"], "cores": 2}
    plan = opdf.Plan(
        opdf.plan(traced, **rules).entries,
        sites=opdf.plan(traced, parametrization="repvgg", include=["0.*"]).sites,
    )
    opt = opdf.Overparam(opdf.branch(student, plan), plan=plan)
    summary = opt.summary()
    assert summary.trained == counted(opt)[0]
    assert summary.deployed == sum(p.numel() for p in student.parameters())
    # A 1 x 1 convolution and its norm, and the norm of the identity.
    assert summary.beside == 4 * 4 + 2 * 4 + 2 * 4
    text, entry = str(summary), plan.entries[0]
    assert "1 convolution has branches: 32 parameters, stepped as they are" in text
    assert f"a step adds {entry.cost.step_flops:,} FLOP, whatever the batch" in text
    assert "dearest to compose: 2.weight (100%)" in text
    flops = 3 * 2 * 2 * 64 * 4 * 4
    found = {"sites": 1, "parameters": 32, "step_flops": flops}
    assert summary.to_json()["branches"] == found
