"""Plans that mix: the first rule that names a weight counts, and each size means what it says."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from sites import Stack, batch
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.errors import PlanError
from opdf_compile.graph import Traced, trace
from opdf_compile.planning import Plan, Rules
from opdf_compile.planning.choose import plan


class Net(nn.Module):
    """Two features, a head, and a second name for the first feature's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(24, 48), nn.Linear(48, 32))
        self.head = nn.Sequential(nn.Linear(32, 16), nn.Linear(16, 24))
        self.again = nn.Linear(24, 48)
        self.again.weight = self.features[0].weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x)) + self.again(x)[:, :24]


@pytest.fixture(scope="module")
def net() -> Traced:
    torch.manual_seed(0)
    return trace(Net(), (torch.randn(256, 24),))


def by(made: Plan) -> dict[str, str]:
    return {entry.key: entry.parametrization for entry in made.entries}


F0, F1, H0, H1 = "features.0.weight", "features.1.weight", "head.0.weight", "head.1.weight"

CHOICES: list[tuple[dict[str, Any], list[str]]] = [
    ({"rules": {"features.*": "gains"}}, ["gains", "gains", "mpo", "mpo"]),
    (
        {"rules": {"features.*": "gains"}, "parametrization": "svd"},
        ["gains", "gains", "svd", "svd"],
    ),
    ({"rules": {"features.0.*": "svd", "features.*": "gains"}}, ["svd", "gains", "mpo", "mpo"]),
    ({"rules": {"*.1.*": "svd", "*": "gains"}}, ["gains", "svd", "gains", "svd"]),
    ({"rules": {"again.*": "svd"}}, ["svd", "mpo", "mpo", "mpo"]),  # By its other name.
    ({"rules": {H0: "svd"}}, ["mpo", "mpo", "svd", "mpo"]),
    ({"rules": {"features.*": "svd", "head.*": "gains", "*": "none"}}, ["svd"] * 2 + ["gains"] * 2),
]


@pytest.mark.parametrize(("asked", "wanted"), CHOICES, ids=[str(row[0]) for row in CHOICES])
def test_the_first_rule_that_names_a_weight_counts(
    net: Traced, asked: dict[str, Any], wanted: list[str]
) -> None:
    assert by(plan(net, **asked)) == dict(zip((F0, F1, H0, H1), wanted, strict=True))


def test_the_order_of_the_rules_is_theirs(net: Traced) -> None:
    wide, narrow = ("features.*", "gains"), ("features.0.*", "svd")
    assert by(plan(net, rules=dict([narrow, wide])))[F0] == "svd"
    with pytest.raises(
        PlanError, match=r"'features\.0\.\*' is never reached: rules before it name"
    ):
        plan(net, rules=dict([wide, narrow]))


def test_none_leaves_weights_alone_and_says_so(net: Traced) -> None:
    for made in (
        plan(net, rules={"head.*": "none"}),
        plan(net, rules={"features.*": "mpo"}, parametrization="none"),
    ):
        assert by(made) == {F0: "mpo", F1: "mpo"}
    reasons = {row.key: row.reason for row in plan(net, rules={"head.*": "none"}).refusals}
    assert reasons == {
        H0: "is left alone by the rule 'head.*'",
        H1: "is left alone by the rule 'head.*'",
    }
    with pytest.raises(PlanError, match=r"no weight is left to plan .* by the rule '\*'"):
        plan(net, parametrization="none")


def test_globs_choose_before_rules_do(net: Traced) -> None:
    made = plan(net, rules={"features.*": "gains"}, include=["*.0.*"], exclude=["head.*"])
    assert by(made) == {F0: "gains"}


def test_a_rule_for_weights_that_do_not_fit_leaves_them_plain() -> None:
    student = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(32, 16))
    made = plan(student, rules={"*": "do_conv"})
    assert by(made) == {"0.weight": "do_conv"}
    (left,) = made.refusals
    assert (left.key, left.reason) == (
        "2.weight",
        "is no convolution kernel of more than one element, as do_conv needs",
    )
    assert by(plan(student, rules={"0.*": "do_conv"})) == {"0.weight": "do_conv", "2.weight": "mpo"}


def cores_of(made: Plan) -> dict[str, int]:
    return {entry.key: len(entry.core_names) for entry in made.entries}


def test_cores_speak_to_the_rules_that_take_a_number_and_say_none(net: Traced) -> None:
    rules = {F0: "mpo(cores=2)", F1: "spectral", H0: "svd"}
    assert cores_of(plan(net, rules=rules)) == {F0: 2, F1: 4, H0: 2, H1: 3}
    made = plan(net, rules=rules, cores=5)
    assert cores_of(made) == {F0: 2, F1: 5, H0: 2, H1: 5}
    # The rule for all others takes no number, another one does: it keeps its usual tensors.
    made = plan(net, rules={"features.*": "mpo"}, parametrization="svd", cores=4)
    assert cores_of(made) == {F0: 4, F1: 4, H0: 2, H1: 2}
    # Where nobody else takes it, it is asked, and says itself what it makes of it.
    with pytest.raises(PlanError, match="svd has 2 factors, found cores=4"):
        plan(net, rules={"features.*": "gains"}, parametrization="svd", cores=4)
    assert cores_of(plan(net, rules={"*": "mpo(cores=4)"})) == dict.fromkeys((F0, F1, H0, H1), 4)


@pytest.mark.parametrize("scale", [1.5, 1.8])
def test_a_scale_is_met_over_all_planned_weights(net: Traced, scale: float) -> None:
    """The small weights have no choice; the large ones, which come last, make up for them."""
    made = plan(net, rules={"head.0.*": "gains", "head.1.*": "powerprop"}, scale=scale)
    trained = sum(p.numel() for p in opdf.expand(net, made).parameters())
    biases = sum(p.numel() for p in net.source.parameters() if p.ndim == 1)
    deployed = sum(p.numel() for p in net.source.parameters() if p.ndim == 2)
    assert made.scale == (trained - biases) / deployed
    assert made.scale == pytest.approx(scale, rel=0.02)
    assert by(made) == {F0: "mpo", F1: "mpo", H0: "gains", H1: "powerprop"}


def test_a_rule_that_says_its_cores_keeps_them_under_a_scale(net: Traced) -> None:
    rules = {"head.*": "mpo(cores=2)"}
    usual = {entry.key: entry.spec for entry in plan(net, cores=2).entries}
    made = plan(net, rules=rules, scale=1.6)
    assert {e.key: e.spec for e in made.entries if e.key in (H0, H1)} == {
        key: usual[key] for key in (H0, H1)
    }
    assert made.scale == pytest.approx(1.6, rel=0.02)
    with pytest.raises(
        PlanError, match=r"scale 9 cannot be reached, these weights allow 1\.\d\d to"
    ):
        plan(net, rules=rules, scale=9)


def test_an_overhead_pays_first_for_rules_that_say_their_cores(net: Traced) -> None:
    rules = {"head.*": "mpo(cores=2)"}
    fixed = [e for e in plan(net, rules=rules, cores=3).entries if e.key in (H0, H1)]
    paid = sum(entry.cost.step_flops for entry in fixed)
    flops = plan(net).student_step_flops
    least = 1 + paid / flops
    made = plan(net, rules=rules, overhead=least + 0.2)
    assert [e for e in made.entries if e.key in (H0, H1)] == fixed
    assert least < made.overhead <= least + 0.2
    assert {F0, F1} & by(made).keys(), "what is left is used"
    only = plan(net, rules=rules, overhead=least * (1 + 1e-9))
    assert by(only) == {H0: "mpo", H1: "mpo"}
    with pytest.raises(
        PlanError, match=r"overhead 1\.0001 cannot be met: .* alone cost 1\.\d+; ask"
    ):
        plan(net, rules=rules, overhead=1.0001)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"rules": {"feature.*": "svd"}}, r"the glob 'feature\.\*' names none of the 5 weights"),
    ({"rules": {"head": "svd"}}, r"'head' names none .*did you mean 'head\.0\.weight'\?"),
    ({"rules": {"": "svd"}}, "the glob '' names none of the 5 weights"),
    ({"rules": {"*": "svd", "head.*": "gains"}}, r"'head\.\*' is never reached: .* put it before"),
    (
        {"rules": {"head.*": "sdv"}},
        r"the rule 'head\.\*' cannot be followed: parametrization 'sdv' is not known; .*mean svd\?",
    ),
    ({"rules": {"head.*": "svd("}}, r"the rule 'head\.\*' cannot be followed: 'svd\(' asks for no"),
    ({"rules": {"head.*": "mpo(cors=3)"}}, r"mpo has no option 'cors' \(did you mean 'cores'\?\)"),
    ({"rules": {"head.*": None}}, r"a rule gives 'head\.\*' the value None, wanted a glob and a"),
    ({"rules": {3: "svd"}}, "a rule gives 3 the value 'svd', wanted a glob and a parametrization"),
    ({"rules": {3: "none"}}, "a rule gives 3 the value 'none'"),
    ({"rules": ["head.*"]}, "rules is a list, wanted a mapping of globs to parametrizations"),
    ({"rules": "head.*=svd"}, "rules is a str, wanted a mapping"),
    (
        {"rules": {"*": "svd"}, "parametrization": "gains"},
        r"parametrization='gains' is given beside a rule for '\*', which says .*; remove one",
    ),
    (
        {"rules": {"*": "mpo(cores=2)"}, "cores": 3},
        r"cores is given beside 'mpo\(cores=2\)', which says how much by itself; remove one",
    ),
    (
        {"rules": {"head.*": "svd", "*": "mpo(cores=2)"}, "cores": 3},
        r"cores=3 speaks to no rule: each says its own or takes none \('svd', 'mpo\(cores=2\)'\)",
    ),
    (
        {"rules": {"head.*": "svd"}, "parametrization": "none", "cores": 3},
        r"cores=3 speaks to no rule: .*\('svd', 'none'\); remove one or the other",
    ),
    ({"rules": {"head.*": "mpo"}, "cores": 65}, "cores is 65, wanted a whole number from 2 to 64"),
    ({"rules": {"head.*": "svd"}, "cores": 3, "scale": 2.0}, "cores and scale are given together"),
]


@pytest.mark.parametrize(("asked", "sentence"), WRONG, ids=[str(row[0]) for row in WRONG])
def test_what_cannot_be_followed_is_said(net: Traced, asked: dict[str, Any], sentence: str) -> None:
    with pytest.raises(PlanError, match=sentence):
        plan(net, **asked)


def test_a_rule_does_not_take_what_only_include_takes() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.mid = nn.Embedding(30, 8), nn.Linear(8, 8)
            self.head = nn.Linear(8, 30, bias=False)
            self.head.weight = self.table.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.mid(self.table(ids)))

    traced = trace(Tied(), (torch.ones(2, 3, dtype=torch.int64),))
    made = plan(traced, rules={"head.*": "svd"})
    assert by(made) == {"mid.weight": "mpo"}
    assert "tied to an embedding" in {row.key: row.reason for row in made.refusals}["table.weight"]
    taken = plan(traced, rules={"head.*": "svd"}, include=["head.*", "mid.*"])
    assert by(taken) == {"mid.weight": "mpo", "table.weight": "svd"}


def test_a_plan_records_its_rules_and_is_read_back(net: Traced) -> None:
    made = plan(net, rules={"features.*": "wide(expansion=2)", "head.*": "none"}, scale=5.43)
    wanted = {"features.*": "wide(expansion=2)", "head.*": "none", "*": "mpo"}
    assert made.request == {"scale": 5.43, "rules": wanted}
    assert list(made.request["rules"]) == list(wanted)
    again = Plan.from_json(json.loads(made.dumps()))
    assert (again.entries, again.request) == (made.entries, made.request)
    assert list(again.request["rules"]) == list(wanted)
    assert plan(net, rules={}) == plan(net)
    # Whoever names one thing for all weights finds the request as it was.
    assert plan(net, parametrization="svd").request == {"cores": 2}
    assert plan(net, rules={"*": "svd"}) == plan(net, parametrization="svd")
    assert plan(net, parametrization="mpo(cores=2)").request == {
        "cores": 2,
        "parametrization": "mpo(cores=2)",
    }


def test_a_mixed_plan_is_trained_in_both_forms_alike_and_folds(net: Traced) -> None:
    rules = {F0: "svd", F1: "gains", H0: "spectral(rank=4)"}
    made = plan(net, rules=rules)
    x = torch.randn(8, 24, generator=torch.Generator().manual_seed(3))
    inline = opdf.expand(net, made)
    torch.testing.assert_close(inline(x), net.source(x), rtol=1e-5, atol=1e-5)
    student = Net()
    student.load_state_dict(net.source.state_dict())
    program = opdf.hoist(student, made)
    inner = torch.optim.SGD(program.parameters(), lr=0.01)
    outer = torch.optim.SGD(inline.parameters(), lr=0.01)
    student(x).square().mean().backward()
    program.backward()
    inner.step()
    program.refresh()
    inline(x).square().mean().backward()
    outer.step()
    folded, other = opdf.fold(program), opdf.fold(inline)
    assert by(made) == {F0: "svd", F1: "gains", H0: "spectral", H1: "mpo"}
    for key in by(made):
        torch.testing.assert_close(folded.state_dict()[key], other.state_dict()[key])
        assert not torch.equal(other.state_dict()[key], net.source.state_dict()[key])


@pytest.fixture(scope="module")
def stack() -> Traced:
    return trace(Stack(), (batch(dtype=torch.float32),))


def test_branches_and_cores_stand_in_one_plan(stack: Traced) -> None:
    rules = {"body.0.*": "repvgg", "body.*": "mobileone(copies=2)", "head.*": "gains"}
    made = plan(stack, rules=rules, min_size=1)
    assert [(site.key, site.parametrization) for site in made.sites] == [
        ("body.0.weight", "repvgg"),
        ("body.3.weight", "mobileone"),
    ]
    assert by(made) == {"head.weight": "gains"}
    again = Plan.from_json(json.loads(made.dumps()))
    assert (again.sites, again.entries, again.request) == (made.sites, made.entries, made.request)
    inline = opdf.expand(stack, made)
    x = batch(dtype=torch.float32)
    torch.testing.assert_close(inline.eval()(x), stack.source.eval()(x), rtol=1e-5, atol=1e-5)
    inline.train()(x).square().mean().backward()
    torch.optim.SGD(inline.parameters(), lr=0.1).step()
    trained = inline.eval()(x)
    folded = opdf.fold(inline)
    assert isinstance(folded, Stack)
    torch.testing.assert_close(folded.eval()(x), trained, rtol=1e-4, atol=1e-5)
    assert not torch.equal(folded.head.weight, stack.source.head.weight)


def test_a_branch_form_that_does_not_fit_leaves_its_weights_alone(stack: Traced) -> None:
    made = plan(stack, rules={"head.*": "repvgg"}, min_size=1)
    (left,) = made.refusals
    assert left.key == "head.weight" and "repvgg" not in by(made).values()
    assert set(by(made)) == {"body.0.weight", "body.3.weight"}


def test_sizes_count_branches_first(stack: Traced) -> None:
    rules = {"body.0.*": "repvgg", "head.*": "none"}
    (site,) = plan(stack, rules=rules).sites
    made = plan(stack, rules=rules, scale=1.5)
    own = made.entries[0].cost.added
    assert made.scale == 1 + (site.added + own) / (site.deployed + made.entries[0].deployed)
    assert made.scale == pytest.approx(1.5, rel=0.05)
    made = plan(stack, rules=rules, overhead=1.5)
    assert made.overhead == 1 + made.cost.step_flops / made.student_step_flops
    assert made.cost.step_flops == site.cost.step_flops + made.entries[0].cost.step_flops
    assert 1 + site.cost.step_flops / made.student_step_flops < made.overhead <= 1.5
    with pytest.raises(PlanError, match=r"1\.001 cannot be met: branches, and rules .*cost 1"):
        plan(stack, rules=rules, overhead=1.001)
    (chain,) = plan(stack, rules=rules, cores=4).entries
    assert len(chain.core_names) == 4, "cores speak to the chains alone"
    for sizes in ({"cores": 3}, {"scale": 2.0}, {"overhead": 1.5}):
        with pytest.raises(PlanError, match="given for repvgg, none, which puts branches"):
            plan(stack, rules={"body.*": "repvgg"}, parametrization="none", **sizes)


def test_each_weight_may_have_a_rule_of_its_own() -> None:
    student = nn.Sequential(*(nn.Linear(8, 8) for _ in range(300)))
    names = ["svd", "gains", "powerprop"]
    rules = {f"{k}.weight": names[k % 3] for k in range(300)}
    made = plan(student, rules=rules)
    assert [entry.parametrization for entry in made.entries] == [names[k % 3] for k in range(300)]


def test_rules_can_be_asked_alone() -> None:
    rules = Rules.of({"a.*": "svd"}, "gains")
    assert rules.words() == {"a.*": "svd", "*": "gains"}
    assert rules.mixed and not Rules.of(None).mixed
