"""The table of optimizers: every kind of answer is told apart from the others."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import torch
from bench.oracle import composed
from optimizers import catalogue, journey
from optimizers.catalogue import Offer, offers
from optimizers.command import main
from optimizers.forms import Over, Run
from optimizers.journey import Outcome, travel
from optimizers.needs import LEFT_OUT, NEEDS, Need
from optimizers.oracle import misfit
from optimizers.page import page
from optimizers.report import completed, line, reason, totals
from optimizers.student import make_student
from zoo.runner import empty_row

ROOT = Path(__file__).parents[2]


def offered(kind: Any, **need: Any) -> Offer:
    return Offer(f"own/{kind.__name__}", kind, Need(**need))


def has_cores(optimizer: torch.optim.Optimizer) -> bool:
    """The first core of a chain has a left bond of 1; no weight of the student has one row."""
    sizes = [p.shape for group in optimizer.param_groups for p in group["params"]]
    return any(len(size) == 4 and size[0] == 1 for size in sizes)


class Raises(torch.optim.SGD):
    """Cannot step cores, and says so in its own words."""

    def step(self, closure: Any = None) -> Any:
        if has_cores(self):
            raise RuntimeError("my own words")
        return super().step(closure)


class NeverSteps(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        raise RuntimeError("not for students")


class Hidden(torch.optim.SGD):
    """With cores it counts its steps where nothing that is saved can hold the count."""

    counts: WeakKeyDictionary[Any, int] = WeakKeyDictionary()

    def step(self, closure: Any = None) -> Any:
        if has_cores(self):
            count = self.counts[self] = self.counts.get(self, 0) + 1
            for group in self.param_groups:
                group["params"][0].grad.mul_(count)
        return super().step(closure)

    def __hash__(self) -> int:
        return id(self)


class Switching(torch.optim.SGD):
    """Evaluates at half of the parameters."""

    half = False

    def train(self) -> None:
        self._turn(False)

    def eval(self) -> None:
        self._turn(True)

    @torch.no_grad()
    def _turn(self, half: bool) -> None:
        if half != self.half:
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.mul_(0.5 if half else 2.0)
        self.half = half


@functools.cache
def travelled(kind: Any) -> dict[str, Any]:
    """The row of a class as it is; nobody changes it."""
    return travel(offered(kind))


def kinds(row: dict[str, Any]) -> dict[str, str]:
    return {name: outcome["kind"] for name, outcome in row["checks"].items()}


def test_a_class_that_works():
    row = travel(offered(torch.optim.Adam))
    assert row["verdict"] == "works" and row["stepped"]
    assert set(kinds(row).values()) == {"ok", "none"}
    assert kinds(row)["train and eval"] == "none"
    assert reason(row) == ""


def test_an_error_of_the_class_is_raw():
    row = travelled(Raises)
    assert row["verdict"] == "raw error" and not row["stepped"]
    assert reason(row).startswith("steps: RuntimeError: my own words (test_optimizers.py:")
    assert kinds(row)["plain steps"] == "ok"


def test_a_sentence_of_the_product_is_a_refusal():
    row = travel(offered(torch.optim.Adam, options={"lr": -1.0}))
    assert row["verdict"] == "plain fails"
    refused = travel(offered(TakesMatrices))
    assert refused["verdict"] == "refused" and not refused["stepped"]
    assert "my own words" in reason(refused)


class TakesMatrices(torch.optim.SGD):
    """Built over tensors of any other form it raises what the product words anew."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, **options)
        own = {p.shape for bias in (True, False) for p in make_student(bias=bias).parameters()}
        if any(p.shape not in own for group in self.param_groups for p in group["params"]):
            raise ValueError("my own words")


def test_a_class_that_no_plain_student_is_stepped_with():
    row = travel(offered(NeverSteps))
    assert row["verdict"] == "plain fails"
    assert reason(row).startswith("plain steps: RuntimeError: not for students")
    assert list(row["checks"]) == ["plain steps"]


def test_state_that_is_lost_is_silently_wrong():
    row = travelled(Hidden)
    assert row["verdict"] == "silently wrong" and row["stepped"]
    assert kinds(row)["state_dict"] == kinds(row)["save_checkpoint"] == "wrong"
    assert "apart, the plain one bit-equal" in row["checks"]["state_dict"]["text"]


def test_what_the_plain_class_loses_too_is_not_held_against_it(monkeypatch: Any):
    monkeypatch.setattr(f"{__name__}.has_cores", lambda optimizer: True)
    row = travel(offered(Hidden))
    assert kinds(row)["state_dict"] == "none"
    assert "the plain one resumes" in row["checks"]["state_dict"]["text"]


def test_a_weight_that_is_not_what_its_cores_make():
    run = Over(offered(torch.optim.SGD), bias=True)
    run.steps(1)
    assert journey.off_cores(run) == ""
    with torch.no_grad():
        run.student.back.weight[3, 5] *= 1.01
    assert journey.off_cores(run).startswith("back.weight is ")


def test_a_core_that_is_not_finite():
    run = Over(offered(torch.optim.SGD), bias=True)
    with torch.no_grad():
        run.optimizer.program.cores("wide.weight")[1].fill_(float("nan"))
    assert journey.off_cores(run) == "a core of wide.weight is not finite"


class Idle(Over):
    """A product that steps nothing."""

    def step(self) -> None:
        self._done += 1


class Eager(Over):
    """A product that steps once more than asked."""

    def steps(self, count: int) -> None:
        super().steps(count + 1)


class Stubborn(Over):
    """A product that does not hear eval()."""

    def switch(self, mode: str) -> None:
        pass


@pytest.mark.parametrize(
    ("form", "check", "says"),
    [
        (Idle, journey.over_steps, " moved, of the plain student some"),
        (Idle, journey.trajectory, "apart"),
        (Eager, journey.trajectory, "apart"),
    ],
)
def test_a_product_that_is_wrong_is_found(monkeypatch: Any, form: Any, check: Any, says: str):
    monkeypatch.setattr(journey, "Over", form)
    outcome = Outcome.of(lambda: check(offered(torch.optim.SGD), True))
    assert outcome.kind == "wrong" and says in outcome.text


def test_a_product_that_does_not_switch_is_found(monkeypatch: Any):
    monkeypatch.setattr(journey, "Over", Stubborn)
    monkeypatch.setattr(Stubborn, "has_modes", True)
    outcome = journey.modes(offered(Switching))
    assert outcome == Outcome("wrong", "eval() left back.bias as it was")


def test_the_plain_form_switches():
    run = Run(offered(Switching), bias=False)
    before = run.weights()
    run.switch("eval")
    assert torch.equal(run.weights()["conv.weight"], before["conv.weight"] / 2)
    assert not Run(offered(torch.optim.SGD), bias=False).has_modes


def test_the_oracle_allows_rounding_and_nothing_else():
    optimizer = Over(offered(torch.optim.SGD), bias=True).optimizer
    entry = optimizer.plan.entries[1]
    generator = torch.Generator().manual_seed(3)
    shapes = [core.shape for core in optimizer.program.cores(entry.key)]
    cores = [torch.randn(shape, generator=generator) for shape in shapes]
    weight = composed(cores, entry)
    assert 0 < misfit(weight, cores, entry) <= 1
    far = weight.clone()
    far[0, 0] += 1e-3 * weight.abs().max()
    assert misfit(far, cores, entry) > 10
    far[0, 0] = float("nan")
    assert misfit(far, cores, entry) == float("inf")
    assert misfit(weight.roll(1, 0), cores, entry) > 1e3


def test_a_process_that_died_is_a_row():
    row = completed({**empty_row("own/Dies"), "status": "failed", "reason": "killed: too long"})
    assert (row["verdict"], row["stepped"]) == ("raw error", False)
    assert line(row, 1, 2).endswith("process: killed: too long")


@pytest.mark.slow
def test_every_class_of_an_installed_package_is_tried_or_left_out():
    found = {offer.name for offer in offers("torch")}
    there = {
        f"torch/{name}"
        for name, kind in vars(torch.optim).items()
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)
    } - {"torch/Optimizer"}
    assert there == found | {name for name in LEFT_OUT if name.startswith("torch/")}
    for package in ("torch", "timm", "transformers"):
        names = {offer.name for offer in offers(package)}
        asked = {name for name in NEEDS if name.startswith(f"{package}/")}
        assert asked <= names
    assert {name.partition("/")[0] for name in (*NEEDS, *LEFT_OUT)} <= set(catalogue.PACKAGES)


def test_the_page_says_what_the_rows_say():
    rows = [travel(offered(torch.optim.SGD)), travelled(Raises), travelled(Hidden)]
    about = {"date": "2026-11-29", "versions": {"torch": "2"}, "device": {"name": "a CPU"}}
    about |= {"python": "3", "packages": {"own": None}}
    figures = {"rows": rows, "totals": totals(rows), "environment": about}
    text = page(figures)
    assert "| step an over-parameterised one | 2 (66.7 %) |" in text
    assert "| own/Raises | steps: RuntimeError: my own words" in text
    assert "| Hidden | silently wrong | yes | yes | **wrong** | **wrong** | - |" in text
    assert "| SGD | works | yes | yes | yes | yes | - |" in text
    rows[0]["verdict"] = "refused"
    assert page({**figures, "totals": totals(rows)}) != text


def committed() -> dict[str, Any]:
    file = ROOT / "benchmarks" / "results" / "optimizers.json"
    figures: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return figures


def test_the_page_in_the_docs_is_of_these_results():
    written = (ROOT / "docs" / "optimizers.md").read_text(encoding="utf-8")
    assert written == page(committed()), "run: make optimizers"


def test_of_the_classes_that_step_plain_nearly_all_step_cores_and_none_is_silently_wrong():
    figures = committed()
    found = totals(figures["rows"])
    assert found == figures["totals"]
    assert found["classes"] >= 250 and min(of["classes"] for of in found["packages"].values()) > 0
    assert found["packages"].keys() == catalogue.PACKAGES.keys()
    assert found["silently wrong"] == found["raw error"] == 0
    assert found["step an over-parameterised one"] >= 0.95 * found["step a plain student"]


def test_a_file_of_another_kind_is_refused(tmp_path: Path, capsys: Any):
    other = tmp_path / "other.json"
    other.write_text('{"schema": "opdf-zoo/1"}', encoding="utf-8")
    with pytest.raises(SystemExit, match="2"):
        main(["--render", "--json", str(other), "--page", str(tmp_path / "page.md")])
    assert "wanted 'opdf-optimizers/1'" in capsys.readouterr().err
