"""The ladder: which rung holds, for which phase, and the sentence that says why."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.errors import TraceError
from opdf_compile.graph import ladder as ladder_of
from opdf_compile.graph.failures import failing_line, reason_of, remedy_of
from opdf_compile.graph.tracing import trace


class Body(nn.Module):
    """One linear layer; `forward` is what a test gives it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def branch(self: Body, x: Tensor) -> Tensor:
    if x.sum() > 0:
        return self.linear(x)
    return x


def drop(self: Body, x: Tensor) -> Tensor:
    if self.training and torch.rand(()) < 0.5:
        return x
    return self.linear(x)


def asks_labels(self: Body, x: Tensor) -> Tensor:
    if self.training:
        raise ValueError("labels are wanted in training")
    return self.linear(x)


def to_numpy(self: Body, x: Tensor) -> Tensor:
    return self.linear(torch.from_numpy(x.detach().numpy()))


class Own:
    def __init__(self, value: Tensor) -> None:
        self.value = value


@pytest.mark.parametrize(
    ("function", "rungs", "sentence"),
    [
        (
            branch,
            {"train": "module", "eval": "module"},
            "no graph can hold the model (Python code depends on the value of a tensor, at "
            "test_ladder.py:{line} in branch: `if x.sum() > 0:`): its matches come from modules, "
            "and it is trained in the hoisted form (opdf.Overparam)",
        ),
        (
            drop,
            {"train": "module", "eval": "dynamic"},
            "no graph can hold the model in train (Python code depends on the value of a tensor, "
            "at test_ladder.py:{line} in drop: `if self.training and torch.rand(()) < 0.5:`): its "
            "matches come from modules, and it is trained in the hoisted form (opdf.Overparam)",
        ),
        (
            asks_labels,
            {"train": "module", "eval": "dynamic"},
            "no graph can hold the model in train (forward in train rejects the example: labels "
            'are wanted in training, at test_ladder.py:{line} in asks_labels: `raise ValueError("'
            'labels are wanted in training")`): its matches come from modules, and it is trained '
            "in the hoisted form (opdf.Overparam)",
        ),
    ],
)
def test_each_phase_climbs_by_itself(
    function: Callable[..., Any], rungs: dict[str, str], sentence: str
) -> None:
    traced = trace(Body(function), (torch.randn(4, 8),))
    assert traced.rungs == rungs
    assert traced.rung == "module"
    assert (
        set(traced.graphs) == set(traced.programs) == {p for p, r in rungs.items() if r != "module"}
    )
    line = function.__code__.co_firstlineno + (2 if function is asks_labels else 1)
    assert traced.notes[0] == sentence.format(line=line)
    # Where there is no eval graph either, a second note says what can be exported all the same.
    assert len(traced.notes) == (2 if rungs["eval"] == "module" else 1)


@pytest.mark.parametrize("function", [branch, drop])
def test_the_module_rung_is_matched_planned_and_trained_hoisted(function: Any) -> None:
    model = Body(function)
    traced = trace(model, (torch.ones(4, 8),))
    report = opdf.match(traced)
    assert [m.key for m in report.matches] == ["linear.weight"]
    assert (report.rung, report.source) == ("module", "modules")
    assert "found from modules (rung module)" in str(report)
    assert "found from modules" in report._repr_html_()
    assert report.to_json()["source"] == "modules"
    plan = opdf.plan(traced, cores=3)
    assert (plan.student_step_flops > 0) == ("eval" in traced.graphs)
    assert (plan.rung, plan.notes) == ("module", traced.notes)
    assert opdf.Plan.from_json(plan.to_json()).notes == traced.notes
    before = model.linear.weight.detach().clone()
    optimizer = opdf.Overparam(model, torch.optim.SGD, plan=plan, lr=0.1)
    torch.testing.assert_close(opdf.fold(optimizer).linear.weight, before)
    model.eval()(torch.ones(4, 8)).sum().backward()
    optimizer.step()
    assert not torch.equal(model.linear.weight, before)
    torch.testing.assert_close(opdf.fold(optimizer).linear.weight, model.linear.weight)


def test_expand_refuses_the_module_rung_with_the_reason_and_the_remedy() -> None:
    for function, which in ((branch, "graph"), (drop, "train graph")):
        traced = trace(Body(function), (torch.randn(4, 8),))
        with pytest.raises(
            TraceError,
            match=rf"Body has no {which} to expand \(Python code depends on the value of a tensor, "
            r"at test_ladder.py:\d+ in .*\), wanted one that torch.export can hold; train the "
            r"module itself in the hoisted form: opdf.Overparam\(model, torch.optim.AdamW, plan",
        ):
            opdf.expand(traced, opdf.plan(traced, cores=3))


def test_a_traced_eval_phase_is_no_training_graph() -> None:
    traced = trace(nn.Linear(8, 8), (torch.randn(4, 8),), phases=("eval",))
    assert traced.rungs == {"eval": "dynamic"}
    assert opdf.match(traced).source == "graph"
    with pytest.raises(TraceError, match="Linear was traced without its train phase, wanted both"):
        opdf.expand(traced, opdf.plan(traced, cores=3))


def test_overhead_without_any_graph_says_what_to_do() -> None:
    with pytest.raises(opdf.UserError, match="if a graph can hold it, or ask for cores= or scale="):
        opdf.plan(trace(Body(branch), (torch.randn(4, 8),)), overhead=1.2)


def numbers_only(self: Body, x: Tensor) -> Tensor:
    if type(x.shape[1]) is not int:
        raise ValueError("sequence lengths are numbers here")
    return self.linear(x)


def test_by_axis_keeps_what_the_model_bears() -> None:
    traced = trace(Body(numbers_only), (torch.randn(3, 5, 8),), dynamic={"x": ("B", "S", 8)})
    assert traced.rungs == {"train": "by-axis", "eval": "by-axis"}
    assert traced.axis_names == {"x": {0: "B"}}
    assert "the rung 'auto' did not hold: sequence lengths are numbers here, at" in traced.notes[0]
    assert traced.notes[-1].startswith("axis 1 (S) of x is fixed at 5")
    assert traced.graphs["train"](torch.randn(7, 5, 8)).shape == (7, 5, 8)


@pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError, KeyboardInterrupt])
def test_what_is_no_fault_of_the_model_goes_through(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: object) -> None:
        raise error("not enough")

    monkeypatch.setattr(ladder_of, "export_phase", fails)
    with pytest.raises(error):
        trace(nn.Linear(8, 8), (torch.randn(4, 8),))


def test_the_probe_changes_nothing_of_the_model() -> None:
    model = nn.Sequential(nn.BatchNorm1d(8), Body(branch)).train()
    random = torch.get_rng_state()
    trace(model, (torch.randn(4, 8, generator=torch.Generator().manual_seed(0)),))
    assert model[0].num_batches_tracked == 0
    assert model.training and model[1].training
    assert torch.equal(random, torch.get_rng_state())


def test_a_module_that_cannot_be_copied_is_still_told_from_wrong_inputs() -> None:
    model = Body(branch)
    model.handle = (part for part in ())  # type: ignore[assignment]
    assert trace(model, (torch.randn(4, 8),)).rung == "module"
    with pytest.raises(TraceError, match="Body rejects the example inputs x=4x7:float32"):
        trace(model, (torch.ones(4, 7),))


@pytest.mark.parametrize(
    ("wrap", "source"),
    [
        (lambda m: torch.compile(m), "Linear"),
        (lambda m: nn.DataParallel(m), "Linear"),
        (lambda m: nn.DataParallel(torch.compile(m)), "Linear"),
        (lambda m: nn.Sequential(torch.compile(m)), "Sequential"),
    ],
)
def test_wrappers_are_looked_through(wrap: Callable[[nn.Module], nn.Module], source: str) -> None:
    traced = trace(wrap(nn.Linear(8, 8)), (torch.randn(4, 8),))
    assert (type(traced.source).__name__, traced.rung) == (source, "dynamic")


def test_a_cache_for_generation_is_off_while_the_model_is_traced() -> None:
    class Decoder(Body):
        config = SimpleNamespace(use_cache=True, text_config=SimpleNamespace(use_cache=True))

        def forward(self, x: Tensor) -> Any:
            cache = self.config.use_cache or self.config.text_config.use_cache
            return (self.linear(x), Own(x)) if cache else (self.linear(x),)

    model = Decoder(branch)
    traced = trace(model, (torch.randn(4, 8),))
    assert traced.rung == "dynamic"
    assert traced.notes[0].startswith("config.use_cache was off while the model was traced")
    assert model.config.use_cache and model.config.text_config.use_cache


def test_a_class_of_its_own_in_the_output_leaves_the_module_rung() -> None:
    traced = trace(Body(lambda self, x: Own(self.linear(x))), (torch.randn(4, 8),))
    assert traced.rung == "module"
    assert "the output holds a Own, which torch.export cannot take apart" in traced.notes[0]


@dataclass
class Pair:
    left: Tensor
    right: Tensor


@dataclass
class Nested:
    pair: Pair
    note: str = "a"


def test_dataclasses_are_registered_and_said_so() -> None:
    traced = trace(Body(lambda self, x: Nested(Pair(self.linear(x), x))), (torch.randn(4, 8),))
    assert traced.rung == "dynamic"
    assert [note.split()[2] for note in traced.notes] == ["Nested", "Pair"]
    assert traced.output_names == ("pair_left", "pair_right", "note")
    assert isinstance(traced.graphs["eval"](torch.randn(2, 8)).pair, Pair)
    assert trace(Body(lambda self, x: Pair(x, x)), (torch.randn(4, 8),)).notes == ()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_torch_jit_module_is_named() -> None:
    model = nn.Sequential(torch.jit.script(nn.Linear(8, 8)), nn.Linear(8, 8))
    traced = trace(model, (torch.randn(4, 8),))
    assert "; 0 is a torch.jit module, compiled code" in traced.notes[0]
    reasons = {row.key: row.reason for row in opdf.match(traced).refusals}
    assert reasons["0.weight"] == "belongs to a torch.jit module, compiled code"


def test_lazy_modules_and_meta_weights_are_told_what_they_lack() -> None:
    with pytest.raises(TraceError, match="'0.weight' of Sequential is not initialised yet, .*run"):
        trace(nn.Sequential(nn.LazyLinear(4)), (torch.randn(2, 4),))
    x = torch.randn(2, 16, device="meta")
    traced = trace(nn.Linear(16, 16, device="meta"), (x,))
    with pytest.raises(opdf.UserError, match="'weight' cannot be factorised: it has no values"):
        opdf.expand(traced, opdf.plan(traced, cores=3))
    with pytest.raises(opdf.UserError, match="'weight' cannot be factorised: it has no values"):
        opdf.hoist(nn.Linear(16, 16, device="meta"))


def test_a_reason_names_the_line_and_a_remedy() -> None:
    try:
        branch(Body(branch), "no tensor")  # type: ignore[arg-type]
    except AttributeError as error:
        assert failing_line(error) is not None
        assert "test_ladder.py" in str(failing_line(error))
        assert reason_of(error).startswith("'str' object has no attribute 'sum', at test_ladder")
    assert failing_line(ValueError("never raised")) is None
    assert "torch.cond" in remedy_of("Python code depends on the value of a tensor, at x.py:1")
    assert "rewrite that part" in remedy_of(".numpy() is not supported")
    assert "take and return" in remedy_of(
        "the output holds a X, which torch.export cannot take apart"
    )


class Straight(torch.autograd.Function):
    """The sign, with the gradient of the identity."""

    @staticmethod
    def forward(ctx: Any, w: Tensor) -> Tensor:
        return w.sign()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class Signs(nn.Module):
    def __init__(self, straight: bool) -> None:
        super().__init__()
        self.layer, self.straight = nn.Linear(8, 16), straight

    def forward(self, x: Tensor) -> Tensor:
        weight = self.layer.weight
        return nn.functional.linear(x, Straight.apply(weight) if self.straight else weight.tanh())


def test_a_backward_that_a_graph_would_lose_keeps_the_module() -> None:
    x = torch.randn(3, 8)
    traced = trace(Signs(straight=True), (x,))
    assert traced.rungs == {"train": "module", "eval": "dynamic"}
    assert "forward runs the autograd.Function Straight, whose backward" in traced.notes[0]
    with pytest.raises(TraceError, match="no train graph to expand .*autograd.Function Straight"):
        opdf.expand(traced, opdf.plan(traced, cores=3))
    assert trace(Signs(straight=False), (x,)).rungs == {"train": "dynamic", "eval": "dynamic"}
    # The patch that notices it is gone again, and the gradient is that of the class.
    assert torch.autograd.Function.apply.__qualname__ != "backwards_kept.<locals>.apply"


def test_the_gradient_of_a_function_trains_the_hoisted_form() -> None:
    student, x = Signs(straight=True), torch.randn(3, 8)
    before = student.layer.weight.detach().clone()
    optimizer = opdf.Overparam(student, torch.optim.SGD, cores=2, lr=0.1)
    student(x).square().sum().backward()
    optimizer.step()
    assert not torch.equal(student.layer.weight, before)


def test_traces_in_threads_wait_for_one_another() -> None:
    found: list[Any] = []
    out = sys.stdout

    def run() -> None:
        found.append(trace(nn.Sequential(nn.Linear(8, 8), nn.ReLU()), (torch.randn(3, 8),)).rungs)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [{"train": "dynamic", "eval": "dynamic"}] * 3
    assert sys.stdout is out


def test_data_is_named_as_what_torch_export_cannot_follow() -> None:
    class Clamped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            self.layer.weight.data.clamp_(-1, 1)
            return self.layer(x)

    assert "forward reads a tensor where torch.export cannot follow (`.data`" in " ".join(
        trace(Clamped(), (torch.randn(3, 8),)).notes
    )
