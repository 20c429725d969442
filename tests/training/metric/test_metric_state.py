"""What methods without cores hold, save, resume, follow and refuse; loops of all kinds."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from metric_oracle import KEYS, LR, X, close, network, train
from quick import covering
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.errors import InputError, PlanError, WeightsChanged
from opdf_compile.parametrizations import registered, registered_names
from opdf_compile.parametrizations.matrix_spec import WeightForm

METHODS = ("ham", "hyperball", "repopt")
named = pytest.mark.parametrize("method", METHODS)


def optimizer_of(
    model: nn.Module, method: str, kind: Any = torch.optim.AdamW, **options: Any
) -> opdf.Overparam:
    plan = opdf.plan(model, parametrization=method, min_size=1)
    return opdf.Overparam(model, kind, plan=plan, **{"lr": LR, **options})


def planned(method: str) -> tuple[str, ...]:
    return KEYS[:2] if method == "repopt" else KEYS


def test_these_are_all_of_them() -> None:
    assert tuple(n for n in registered_names() if registered(n).metric) == METHODS


@pytest.mark.parametrize(
    ("method", "dtype", "fill"),
    [
        pytest.param(
            *(method, dtype, fill),
            # Each pair of two of them once in every run.
            marks=() if (i + j + k) % 3 == 0 else pytest.mark.slow,
        )
        for i, method in enumerate(METHODS)
        for j, dtype in enumerate((torch.bfloat16, torch.float32, torch.float64))
        for k, fill in enumerate((None, 0.0, 0.3))
    ],
)
def test_nothing_is_held_and_the_start_has_the_same_bits(
    method: str, dtype: torch.dtype, fill: float | None
) -> None:
    model = network(dtype)
    if fill is not None:
        for key in KEYS:
            nn.init.constant_(model.get_parameter(key), fill)
    start = copy.deepcopy(model.state_dict())
    opt, plain = optimizer_of(model, method), torch.optim.AdamW(network(dtype).parameters(), lr=LR)
    assert opt.program.units == () and opt.plan.scale == 1.0
    assert {entry.key for entry in opt.plan.entries} == set(planned(method))
    # The wrapped optimizer steps the student's own Parameters, each once.
    held = [id(p) for group in opt.inner.param_groups for p in group["params"]]
    assert sorted(held) == sorted(map(id, model.parameters()))
    kept = [t for key in planned(method) for t in opt.program.cores(key)]
    assert [t.numel() for t in kept] == ([1, 1, 1] if method == "hyperball" else [])
    for folded in (opdf.fold(opt), model):
        assert all(torch.equal(v, start[k]) for k, v in folded.state_dict().items())
    train(model, opt)
    train(network(dtype), plain)
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    assert [sum(t.numel() for t in state.values()) for state in opt.inner.state.values()] == [
        2 * p.numel() + 1 for group in opt.inner.param_groups for p in group["params"]
    ]
    assert all(
        torch.equal(v, model.state_dict()[k]) for k, v in opdf.fold(opt).state_dict().items()
    )
    assert not torch.equal(model.state_dict()[KEYS[0]], start[KEYS[0]])


def test_what_lives_during_a_step() -> None:
    """A copy of the weight under hyperball, of the centre under repopt, and none under ham."""
    weight = torch.ones(4, 2, 3, 3)
    form = WeightForm((4, 2, 3, 3), kernel=9)
    sizes = {}
    for method in METHODS:
        by: Any = registered(method)
        spec = by.propose(form, cores=0)
        found = [by.snapshot(weight, spec, scaling) for scaling in ("linear", "free")]
        sizes[method] = [0 if copied is None else copied.numel() for copied in found]
        assert (by.multiplied(weight, spec, "linear") is None) == (method != "repopt")
        assert by.multiplied(weight, spec, "free") is None
    assert sizes == {"ham": [0, 0], "hyperball": [72, 72], "repopt": [0, 8]}
    other: Any = registered("repopt")
    assert other.snapshot(weight, other.propose(form, kernel_scale=2.0), "free").numel() == 72


@pytest.mark.parametrize("value", [0.0, 1e200])
def test_a_weight_without_a_norm_is_left_to_the_optimizer(
    value: float, caplog: pytest.LogCaptureFixture
) -> None:
    """Zero, or so large that the squares of its entries are beyond float64."""
    model, plain = network(), network()
    for student in (model, plain):
        nn.init.constant_(student.get_parameter(KEYS[2]), value)
    caplog.set_level("WARNING", "opdf_compile")
    opt = optimizer_of(model, "hyperball", torch.optim.SGD)
    (told,) = caplog.messages
    assert told == (
        "a weight of shape [5, 16] has norm 0, or one beyond its dtype: hyperball leaves it to the "
        "optimizer"
    )
    for student, optimizer in ((model, opt), (plain, torch.optim.SGD(plain.parameters(), lr=LR))):
        student(X).square().mean().backward()
        optimizer.step()
    close_one = torch.testing.assert_close
    close_one(model.get_parameter(KEYS[2]), plain.get_parameter(KEYS[2]), rtol=0, atol=0)
    train(model, opt)


@pytest.mark.parametrize(
    ("method", "kind", "by"),
    covering(METHODS, [torch.optim.SGD, torch.optim.AdamW], ["state_dict", "checkpoint"]),
)
def test_a_run_resumes_bit_for_bit(method: str, kind: Any, by: str, tmp_path: Path) -> None:
    whole = network(torch.float32)
    train(whole, optimizer_of(whole, method, kind, weight_decay=0.1), 5)
    first = network(torch.float32)
    opt = optimizer_of(first, method, kind, weight_decay=0.1)
    train(first, opt, 2)
    second = network(torch.float32)
    with torch.no_grad():
        for key in KEYS:
            second.get_parameter(key).mul_(2.0)  # Another norm, which must not be held.
    other = optimizer_of(second, method, kind, lr=1.0)
    if by == "state_dict":
        second.load_state_dict(copy.deepcopy(first.state_dict()))
        other.load_state_dict(copy.deepcopy(opt.state_dict()))
    else:
        opdf.save_checkpoint(tmp_path / "run", opt, step=2)
        found = opdf.latest_checkpoint(tmp_path / "run")
        assert found is not None
        opdf.load_checkpoint(found, other)
    train(second, other, 3)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key


@named
def test_decay_of_the_weight_is_that_of_the_weight(method: str) -> None:
    model = network()
    start = copy.deepcopy(model.state_dict())
    opt = optimizer_of(model, method, torch.optim.SGD, lr=0.1, weight_decay=0.3)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    opt.step()
    # ham's own decay is another factor.
    factor = {"ham": 0.97 * math.exp(-1e-4), "hyperball": 1.0}
    for key in planned(method):
        wanted = factor.get(method, 0.97) * start[key]
        torch.testing.assert_close(model.state_dict()[key], wanted, rtol=1e-14, atol=1e-15)


def test_another_norm_is_told_and_absorbed() -> None:
    model = network()
    opt = optimizer_of(model, "hyperball")
    train(model, opt, 2)
    with torch.no_grad():
        model.get_parameter(KEYS[1]).mul_(2.0)
    model(X).square().mean().backward()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(WeightsChanged, match=r"1 weights? .*another norm .*absorb\(\).*3.weight"):
        opt.step()
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items()), "nothing moved"
    assert opt.absorb() == (KEYS[1],)
    train(model, opt, 2)
    norm = float(before[KEYS[1]].norm())
    assert float(model.state_dict()[KEYS[1]].norm()) == pytest.approx(norm, rel=1e-14)


@pytest.mark.parametrize("method", ["ham", "repopt"])
def test_methods_that_keep_nothing_bear_other_weights(method: str) -> None:
    model = network()
    opt = optimizer_of(model, method)
    with torch.no_grad():
        model.get_parameter(KEYS[0]).mul_(2.0)
    train(model, opt, 1)
    assert opt.absorb() == ()


@named
def test_groups_rates_and_weights_without_gradient(method: str) -> None:
    """Two rates in one optimizer are two optimizers; what has no gradient does not move."""
    model, one, other = network(), network(), network()
    split = {
        name: (0.02 if name.startswith("0") else 0.05) for name, _p in model.named_parameters()
    }
    groups = [
        {"params": [p for k, p in model.named_parameters() if split[k] == lr], "lr": lr}
        for lr in (0.02, 0.05)
    ]
    plan = opdf.plan(model, parametrization=method, min_size=1)
    opt = opdf.Overparam(groups, torch.optim.AdamW, plan=plan, module=model)
    opts = [optimizer_of(one, method, lr=0.02), optimizer_of(other, method, lr=0.05)]
    for student in (model, one, other):
        student(X).square().mean().backward()
        student.get_parameter(KEYS[1]).grad = None
    for optimizer in (opt, *opts):
        optimizer.step()
    for name, lr in split.items():
        wanted = (one if lr == 0.02 else other).get_parameter(name)
        assert torch.equal(model.get_parameter(name), wanted), name
    assert torch.equal(model.get_parameter(KEYS[1]), network().get_parameter(KEYS[1]))


@named
def test_a_weight_that_is_taken_out_of_the_groups_stays(method: str) -> None:
    model = network()
    opt = optimizer_of(model, method)
    train(model, opt, 1)
    weight = model.get_parameter(KEYS[0])
    group = opt.param_groups[0]
    group["params"] = [p for p in group["params"] if p is not weight]
    before = weight.detach().clone()
    train(model, opt, 1)
    assert torch.equal(weight, before)
    opt.add_param_group({"params": [weight], "lr": LR})
    train(model, opt, 1)
    assert not torch.equal(weight, before)


@named
def test_a_skipped_step_of_a_scaler_moves_nothing(method: str) -> None:
    model = network(torch.float32)
    opt = optimizer_of(model, method)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    before = copy.deepcopy(model.state_dict())
    for overflow in (True, False):
        opt.zero_grad()
        scaler.scale(model(X.float()).square().mean()).backward()
        if overflow:
            grad = model.get_parameter(KEYS[0]).grad
            assert grad is not None
            grad.fill_(torch.inf)
        scaler.step(opt)
        scaler.update()
        same = torch.equal(model.state_dict()[KEYS[0]], before[KEYS[0]])
        assert same is overflow
    plain = network(torch.float32)
    train(plain, optimizer_of(plain, method), 1)
    # A power of two scales without rounding.
    close(model, plain, 1e-6)


class Climbs(torch.optim.Optimizer):
    """Sharpness-aware over SGD: climbs, evaluates, comes back, steps; clears as it goes."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any) -> Any:  # type: ignore[override]
        held = [p for g in self.param_groups for p in g["params"] if p.grad is not None]
        foot = [p.clone() for p in held]
        for p in held:
            p.add_(p.grad, alpha=0.05)
        self.zero_grad()
        loss = closure()
        for p, value in zip(held, foot, strict=True):
            p.copy_(value)
            p.add_(p.grad, alpha=-self.param_groups[0]["lr"])
        return loss


def test_a_step_of_two_evaluations_is_one_step() -> None:
    """hyperball of the whole move of a sharpness-aware optimizer."""
    model, plain = network(), network()
    opt = optimizer_of(model, "hyperball", Climbs)
    inner = Climbs(plain.parameters(), lr=LR)

    def closure_of(student: nn.Module) -> Callable[[], Tensor]:
        @torch.enable_grad()
        def evaluate() -> Tensor:
            loss = student(X).square().mean()
            loss.backward()
            return loss

        return evaluate

    for _ in range(3):
        for student, optimizer in ((model, opt), (plain, inner)):
            optimizer.zero_grad()
            closure_of(student)()
            before = {key: plain.get_parameter(key).detach().clone() for key in KEYS}
            optimizer.step(closure_of(student))  # type: ignore[arg-type]
        with torch.no_grad():
            for key, old in before.items():
                weight = plain.get_parameter(key)
                radius, move = old.norm(), weight - old
                moved = old + LR * radius * move / move.norm()
                weight.copy_(radius * moved / moved.norm())
        close(model, plain, 1e-12)


class Fails(torch.optim.SGD):
    """Fails before it moves anything, on more parameters than it is tried with."""

    def step(self, closure: Any = None) -> Any:
        if sum(len(group["params"]) for group in self.param_groups) > 1:
            raise RuntimeError("no power")
        return super().step(closure)


@named
def test_a_failed_step_leaves_everything(method: str) -> None:
    model = network()
    opt = optimizer_of(model, method, Fails, weight_decay=0.1)
    model(X).square().mean().backward()
    grads = [p.grad for p in model.parameters()]
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match="no power"):
        opt.step()
    assert all(p.grad is g for p, g in zip(model.parameters(), grads, strict=True))
    for key, value in before.items():
        torch.testing.assert_close(model.state_dict()[key], value, rtol=3e-16, atol=0)


@named
def test_a_bare_program_with_an_attached_optimizer(method: str) -> None:
    model, other = network(), network()
    # One op after the other, as torch steps what a loop has in one group.
    train(model, optimizer_of(model, method, weight_decay=0.0, foreach=False), 4)
    program = opdf.hoist(other, opdf.plan(other, parametrization=method, min_size=1))
    inner = torch.optim.AdamW(program.parameters(), lr=LR, weight_decay=0.0)
    with pytest.raises(InputError, match=r"none was attached; call opdf.attach\(program, optim"):
        program.refresh()
    detach = opdf.attach(program, inner)
    for _ in range(4):
        program.zero_grad()
        other(X).square().mean().backward()
        program.backward()
        inner.step()
        program.refresh()
    close(other, model, 0.0)
    saved = program.state_dict()
    assert len(saved) == (3 if method == "hyperball" else 0)
    program.load_state_dict(saved)
    detach()
    with pytest.raises(InputError, match="none was attached"):
        program.refresh()


@named
def test_a_scaler_that_skips_an_attached_optimizer_moves_nothing(method: str) -> None:
    model = network(torch.float32)
    program = opdf.hoist(model, opdf.plan(model, parametrization=method, min_size=1))
    inner = torch.optim.SGD(program.parameters(), lr=LR)
    opdf.attach(program, inner)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scaler.scale(model(X.float()).square().mean()).backward()
    gradient = model.get_parameter(KEYS[0]).grad
    assert gradient is not None
    gradient.fill_(torch.inf)
    scaler.step(inner)
    assert model.get_parameter(KEYS[0]).grad is gradient
    for key, value in network(torch.float32).state_dict().items():
        assert torch.equal(model.state_dict()[key], value)


def test_attach_wants_a_program_and_its_optimizer() -> None:
    model = network()
    with pytest.raises(InputError, match="attach got a Sequential and a SGD, wanted the WeightPr"):
        opdf.attach(model, torch.optim.SGD(model.parameters(), lr=0.1))  # type: ignore[arg-type]


def test_a_state_of_another_method_is_refused_with_what_it_holds() -> None:
    saved = optimizer_of(network(), "hyperball").state_dict()
    with pytest.raises(InputError, match=r"holds cores of shapes \[\(1,\)\] for '0.weight', wa"):
        optimizer_of(network(), "ham").load_state_dict(saved)


def bare(kind: Any = torch.optim.SGD) -> tuple[nn.Module, Any, torch.optim.Optimizer]:
    model = network()
    program = opdf.hoist(model, opdf.plan(model, parametrization="ham", min_size=1))
    return model, program, kind(program.parameters(), lr=LR)


def test_attach_refuses_what_would_move_weights_twice_or_not_at_all() -> None:
    model, program, inner = bare()
    detach = opdf.attach(program, inner)
    with pytest.raises(InputError, match="this SGD is attached to the program already, and a sec"):
        opdf.attach(program, inner)
    detach()
    opdf.attach(program, inner)
    with pytest.raises(InputError, match="SGD takes its gradients from a closure, which attach do"):
        inner.step(lambda: 0.0)
    stranger = torch.optim.SGD(network().parameters(), lr=LR)
    with pytest.raises(InputError, match=r"holds none of the 3 weights .*the first is '0.weight'"):
        opdf.attach(program, stranger)
    _model, program, searching = bare(torch.optim.LBFGS)
    with pytest.raises(InputError, match=r"LBFGS takes .*wanted gradients before step\(\)"):
        opdf.attach(program, searching)
    opt = optimizer_of(model, "ham")
    with pytest.raises(InputError, match="an Overparam is attached to the program already"):
        opdf.attach(opt.program, opt.inner)


def test_a_copy_of_a_program_is_attached_to_nothing() -> None:
    _model, program, inner = pair = bare()
    opdf.attach(program, inner)
    program.refresh()
    _model, program, inner = copy.deepcopy(pair)
    with pytest.raises(InputError, match="none was attached"):
        program.refresh()
    opdf.attach(program, inner)
    program.refresh()


def mixed(model: nn.Module) -> opdf.Plan:
    parts = {"hyperball": KEYS[0], "repopt": KEYS[1], "md": KEYS[2]}
    plans = [
        opdf.plan(model, parametrization=name, include=[key], min_size=1)
        for name, key in parts.items()
    ]
    return opdf.Plan(tuple(entry for plan in plans for entry in plan.entries))


def test_a_plan_of_methods_with_and_without_cores(tmp_path: Path) -> None:
    model, batched = network(), network()
    plan = mixed(model)
    plan.save(tmp_path / "plan.json")
    assert opdf.Plan.load(tmp_path / "plan.json") == plan
    opt = opdf.Overparam(model, torch.optim.AdamW, plan=plan, module=model, lr=LR)
    train(model, opt, 3)
    assert "norm held" in str(plan) and "kernel 1, point 1" in str(opt.summary())
    assert "stepped as they are: 2 (hyperball, repopt)" in str(opt.summary())
    assert "AdamW steps the cores" in str(opt.summary())
    alone_text = str(optimizer_of(network(), "ham").summary())
    assert "AdamW steps the weights" in alone_text
    # Nothing is composed where there are no cores.
    assert "products of cores" not in alone_text and "dearest to compose" not in alone_text
    cored = {e.key: e.cost.step_flops for e in plan.entries if not e.metric}
    assert f"a step adds {sum(cored.values()):,} FLOP" in str(opt.summary())
    alone = network()
    for method, key in (("hyperball", KEYS[0]), ("repopt", KEYS[1])):
        first = opdf.plan(alone, parametrization=method, include=[key], min_size=1)
        assert first.entries[0] in plan.entries
    close(opdf.fold(opt), model, 1e-12)
    opts = opdf.Overparam(batched, torch.optim.AdamW, plan=plan, module=batched, lr=LR)
    batched.load_state_dict(model.state_dict())
    opts.load_state_dict(opt.state_dict())
    for student, optimizer in ((model, opt), (batched, opts)):
        train(student, optimizer, 2)
    close(batched, model, 0.0)


@named
def test_no_graph_holds_them(method: str) -> None:
    traced = opdf.trace(network(), (X,))
    plan = opdf.plan(traced, parametrization=method, min_size=1)
    with pytest.raises(PlanError, match=f"{method}, planned for '0.weight', acts around the step"):
        opdf.expand(traced, plan)
    with pytest.raises(PlanError, match="holds no cores that a weight is made of"):
        plan.entries[0].compose([torch.zeros(1)])


class Copies(torch.optim.SGD):
    """Keeps a second point."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p].setdefault("z", p.detach().clone())
        return super().step(closure)


class FindsItsStep(torch.optim.SGD):
    """lr is a factor of a step size that starts small."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.data.add_(p.grad, alpha=-1e-6 * group["lr"])


class ByRows(torch.optim.SGD):
    """The direction of each row."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(nn.functional.normalize(p.grad, dim=-1), alpha=group["lr"])


REFUSED = [
    ("repopt", ByRows, "its step neither follows the size of a gradient in proportion"),
    ("repopt", torch.optim.RAdam, "its step neither follows"),  # In proportion for five steps only.
    ("repopt", torch.optim.Adafactor, "its step neither follows"),
    ("hyperball", FindsItsStep, "it finds its step size by itself, and its learning rate is none"),
    ("ham", FindsItsStep, "it finds its step size by itself"),
    ("hyperball", Copies, "it keeps a copy of the parameters, which would not follow"),
    ("ham", Copies, "it keeps a copy of the parameters"),
    ("md", Copies, "it keeps a copy of the parameters"),
]


@pytest.mark.parametrize(("method", "kind", "reason"), REFUSED)
def test_optimizers_that_a_method_cannot_work_with(method: str, kind: Any, reason: str) -> None:
    with pytest.raises(InputError, match=rf"{method}, planned for '0.weight', .*{reason}"):
        optimizer_of(network(), method, kind)


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("repopt", Copies),
        ("repopt", FindsItsStep),
        ("hyperball", ByRows),
        *((m, getattr(torch.optim, k)) for m in METHODS for k in ("Adagrad", "NAdam", "RMSprop")),
        ("repopt", torch.optim.Rprop),
        ("repopt", torch.optim.ASGD),
    ],
)
def test_optimizers_that_it_can(method: str, kind: Any) -> None:
    model = network()
    opt = optimizer_of(model, method, kind)
    train(model, opt, 2)
    assert not torch.equal(model.get_parameter(KEYS[0]), network().get_parameter(KEYS[0]))


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("ham", {"alpha": -1.0}, "alpha is -1.0, wanted a number from 0"),
    ("ham", {"beta": float("nan")}, "beta is nan"),
    ("repopt", {"kernel_scale": 0.0}, "kernel_scale is 0.0, wanted a number above 0"),
    ("repopt", {"point_scale": -1.0}, "point_scale is -1.0, wanted a number from 0"),
    ("repopt", {"identity": 1}, "identity is 1 and groups is 1"),
    ("repopt", {"identity": True}, r"identity is true for a weight of shape \[4, 3, 3, 3\]"),
    ("repopt", {"shape": (4, 3, 2, 2)}, "is no convolution kernel of odd sizes"),
]


@pytest.mark.parametrize(("method", "values", "sentence"), BAD)
def test_choices_that_do_not_fit(method: str, values: dict[str, Any], sentence: str) -> None:
    form = WeightForm((4, 3, 3, 3), kernel=9)
    spec = registered(method).propose(form, cores=0)
    data = {**registered(method).spec_to_json(spec), **values}
    with pytest.raises(PlanError, match=sentence):
        registered(method).spec_from_json(
            {key: list(value) if isinstance(value, tuple) else value for key, value in data.items()}
        )


@named
def test_there_are_no_cores_to_ask_for(method: str) -> None:
    form = WeightForm((4, 3, 3, 3), kernel=9)
    with pytest.raises(PlanError, match=f"{method} has no cores, found cores=3"):
        registered(method).propose(form, cores=3)
    spec = registered(method).propose(form, cores=0)
    text = registered(method).spec_to_json(spec)
    assert registered(method).spec_from_json(text) == spec


def test_repopt_leaves_what_has_no_centre_and_says_so() -> None:
    plan = opdf.plan(network(), parametrization="repopt", min_size=1)
    reason = "is no convolution kernel of odd sizes and more than one element, as repopt needs"
    assert [(r.key, r.reason) for r in plan.refusals] == [(KEYS[2], reason)]
    identity = opdf.plan(network(), parametrization="repopt(identity=true)", min_size=1)
    # The first layer gives four channels for three.
    specs: list[Any] = [entry.spec for entry in identity.entries]
    assert [(spec.identity, spec.groups) for spec in specs] == [(False, 1), (True, 2)]


def test_chains_have_nothing_to_attach() -> None:
    program = opdf.hoist(network(), opdf.plan(network(), cores=2, min_size=1))
    inner = torch.optim.SGD(program.parameters(), lr=LR)
    detach = opdf.attach(program, inner)
    assert not inner._optimizer_step_pre_hooks and not program.hooks
    detach()
