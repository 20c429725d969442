"""What a wrapped optimizer keeps in ways of its own comes back, by every road, to the bit."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from quick import covering
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.errors import InputError
from opdf_compile.training.optimizer import weight_state as named

X = torch.randn(8, 12, generator=torch.Generator().manual_seed(1))


class Counting(torch.optim.SGD):
    """Its rate falls with a counter that its own state_dict() holds."""

    count = 0

    def step(self, closure: Any = None) -> Any:
        self.count += 1
        rates = [group["lr"] for group in self.param_groups]
        for group in self.param_groups:
            group["lr"] /= self.count
        loss = super().step(closure)
        for group, rate in zip(self.param_groups, rates, strict=True):
            group["lr"] = rate
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "count": self.count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        state = dict(state_dict)
        self.count = state.pop("count")
        super().load_state_dict(state)


class ByText(torch.optim.SGD):
    """Its counter lies beside the parameters' states, under a text."""

    def step(self, closure: Any = None) -> Any:
        if "k" not in self.state:
            self.state["k"] = torch.tensor([0])
        self.state["k"] += 1
        with torch.no_grad():
            for group in self.param_groups:
                for p in (p for p in group["params"] if p.grad is not None):
                    p.add_(p.grad, alpha=-group["lr"] / float(self.state["k"]))


class ByNumber(torch.optim.SGD):
    """Its buffers lie in dicts under numbers, beside a set and a tuple."""

    def step(self, closure: Any = None) -> Any:
        with torch.no_grad():
            for group in self.param_groups:
                for p in (p for p in group["params"] if p.grad is not None):
                    state = self.state[p]
                    if "ready" not in state:
                        state[0] = {"sum": torch.zeros_like(p)}
                    state["ready"] = {0, *state.get("ready", ())}
                    state["at"] = (1 + state.get("at", (0,))[0],)
                    state[0]["sum"].add_(p.grad)
                    p.add_(state[0]["sum"], alpha=-group["lr"] / state["at"][0])


class Around(torch.optim.Optimizer):
    """Steps a second optimizer and goes half way back to slow weights every other time."""

    def __init__(self, base: torch.optim.Optimizer) -> None:
        self.base = base
        super().__init__(base.param_groups, base.defaults)
        self.param_groups = base.param_groups
        self.times = 0
        self.slow = [p.detach().clone() for g in self.param_groups for p in g["params"]]

    def step(self, closure: Any = None) -> Any:
        loss = self.base.step(closure)
        self.times += 1
        held = [p for group in self.param_groups for p in group["params"]]
        with torch.no_grad():
            for slow, p in zip(self.slow, held, strict=True):
                if self.times % 2 == 0:
                    p.copy_(slow.lerp_(p, 0.5))
        return loss

    def state_dict(self) -> dict[str, Any]:
        slow = {(0, place): value for place, value in enumerate(self.slow)}
        return {"times": self.times, "slow": slow, "base": self.base.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.times = state_dict["times"]
        self.slow = [state_dict["slow"][0, place].clone() for place in range(len(self.slow))]
        self.base.load_state_dict(state_dict["base"])
        self.param_groups = self.base.param_groups


def around(params: Any, **options: Any) -> Around:
    return Around(torch.optim.AdamW(params, **options))


class Referring(torch.optim.SGD):
    """Keeps where each parameter started, by the parameter itself, and a function and bytes."""

    scheme = b"a setting"

    def step(self, closure: Any = None) -> Any:
        if "start" not in self.state:
            held = [p for group in self.param_groups for p in group["params"]]
            self.state["start"] = {p: p.detach().clone() for p in held}
        loss = super().step(closure)
        with torch.no_grad():
            for p, start in self.state["start"].items():
                p.lerp_(start, 0.1)
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "scheme": self.scheme, "by": torch.lerp}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        assert state_dict["scheme"] == b"a setting" and state_dict["by"] is torch.lerp
        state = {k: v for k, v in state_dict.items() if k not in ("scheme", "by")}
        super().load_state_dict(state)


class CountingByGroup(torch.optim.SGD):
    """Counts its steps in a tensor of each group."""

    def step(self, closure: Any = None) -> Any:
        with torch.no_grad():
            for group in self.param_groups:
                group.setdefault("steps", torch.tensor(0.0)).add_(1)
                for p in (p for p in group["params"] if p.grad is not None):
                    p.add_(p.grad, alpha=-group["lr"] / float(group["steps"]))


class Masters(torch.optim.Optimizer):
    """Steps copies of its parameters, which its groups hold in their place."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, options)
        self.outside = self.param_groups
        self.masters = [
            {**g, "params": [nn.Parameter(p.detach().double()) for p in g["params"]]}
            for g in self.param_groups
        ]
        self.base = torch.optim.SGD(self.masters, momentum=0.9, **options)

    def step(self, closure: Any = None) -> Any:
        pairs = list(self.pairs())
        for p, master in pairs:
            master.grad = None if p.grad is None else p.grad.double()
        self.base.step()
        with torch.no_grad():
            for p, master in pairs:
                p.copy_(master)

    def pairs(self) -> Any:
        for group, base in zip(self.outside, self.base.param_groups, strict=True):
            yield from zip(group["params"], base["params"], strict=True)

    def state_dict(self) -> dict[str, Any]:
        masters = [master.detach().clone() for _p, master in self.pairs()]
        return {**self.base.state_dict(), "masters": masters}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.base.load_state_dict({k: v for k, v in state_dict.items() if k != "masters"})
        for (_p, master), saved in zip(self.pairs(), state_dict["masters"], strict=True):
            master.data.copy_(saved)


CLASSES: dict[str, Callable[..., Any]] = {
    "a counter": Counting,
    "by text": ByText,
    "by number": ByNumber,
    "around another": around,
    "by parameter": Referring,
    "masters": Masters,
    "by group": CountingByGroup,
}
Made = tuple[nn.Sequential, opdf.Overparam]


def build(make: Any, **options: Any) -> Made:
    torch.manual_seed(3)
    student = nn.Sequential(nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 12))
    return student, opdf.Overparam(student, make, **{"lr": 0.05, "cores": 3} | options)


def train(student: nn.Module, opt: Any, steps: int) -> None:
    for _ in range(steps):
        opt.zero_grad()
        (student(X) - 1).square().mean().backward()
        opt.step()


def through_file(state: Any) -> Any:
    stream = io.BytesIO()
    torch.save(state, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=True)


def by_state_dict(first: Made, second: Made, folder: Path) -> None:
    pairs: Any = zip(first, second, strict=True)
    for left, right in pairs:
        right.load_state_dict(through_file(left.state_dict()))


def by_checkpoint(first: Made, second: Made, folder: Path) -> None:
    opdf.save_checkpoint(folder, first[1], step=1)
    opdf.load_checkpoint(folder, second[1])


def apart(left: nn.Module, right: nn.Module) -> float:
    pairs = zip(left.parameters(), right.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


ROADS = [by_state_dict, by_checkpoint]


@pytest.mark.parametrize(("name", "road"), covering(CLASSES, ROADS))
def test_resume_is_equal_to_the_bit(name: str, road: Any, tmp_path: Path) -> None:
    first, second = build(CLASSES[name]), build(CLASSES[name])
    train(*first, 3)
    train(*second, 1)  # What it keeps itself must go.
    road(first, second, tmp_path)
    train(*first, 3)
    train(*second, 3)
    assert apart(first[0], second[0]) == 0.0


@pytest.mark.parametrize("name", [name for name in CLASSES if name != "by group"])
def test_the_bits_tell_a_resume_without_it(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """A state of an earlier version loads as before, says what it lacks, and goes on otherwise."""
    first, second = build(CLASSES[name]), build(CLASSES[name])
    train(*first, 3)
    state = first[1].state_dict()
    del state["opdf"]["class_state"]
    state["opdf"]["schema"] = "opdf-overparam/1"
    if name == "by number":
        cores = {"cores.0", "cores.1", "cores.2"}
        state["state"] = {
            place: {key: value for key, value in kept.items() if key in cores}
            for place, kept in state["state"].items()
        }
    second[0].load_state_dict(first[0].state_dict())
    second[1].load_state_dict(through_file(state))
    train(*first, 2)
    train(*second, 2)
    assert apart(first[0], second[0]) > 1e-5
    told = "saved by a version that did not keep what" in caplog.text
    # What lies beside the parameters' states before the first step tells that it is missing.
    assert told == (name in ("a counter", "around another", "by parameter", "masters"))


def other_setting(state: Any, opt: opdf.Overparam) -> None:
    inner: Any = opt.inner
    inner.scheme = b"another"


def no_rest(state: Any, opt: opdf.Overparam) -> None:
    del state["opdf"]["class_state"]["rest"]["top"]


def unreadable(state: Any, opt: opdf.Overparam) -> None:
    state["opdf"]["class_state"]["rest"]["state"]["start"] = {"$set": 3}


def unknown(state: Any, opt: opdf.Overparam) -> None:
    state["param_groups"][0]["kind"] = {"$named": "torch.nn.modules.linear.Linear"}


BROKEN: dict[Callable[..., None], str] = {
    other_setting: "saved with the setting .* of the wrapped optimizer, found .* here",
    no_rest: r"has the parts \['state'\], wanted 'state' and 'top'",
    unreadable: r"holds '\$set' in a form that cannot be read",
    unknown: "saved with the setting torch.nn.modules.linear.Linear .* found None here",
}


@pytest.mark.parametrize("damage", BROKEN, ids=lambda f: f.__name__)
def test_what_cannot_be_taken_over_changes_nothing(damage: Callable[..., None]) -> None:
    (student, opt), (again, other) = build(Referring), build(Referring)
    train(student, opt, 3)
    train(again, other, 1)
    state = through_file(opt.state_dict())
    damage(state, other)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(InputError, match=BROKEN[damage]):
        other.load_state_dict(state)
    assert named.equal(other.state_dict(), before)


def test_a_snapshot_before_the_first_step_clears_what_came_later() -> None:
    student, opt = build(ByText)
    fresh = copy.deepcopy((student.state_dict(), opt.state_dict()))
    train(student, opt, 3)
    wanted = copy.deepcopy(student.state_dict())
    student.load_state_dict(fresh[0])
    opt.load_state_dict(fresh[1])
    assert "k" not in opt.inner.state
    train(student, opt, 3)
    assert all(torch.equal(student.state_dict()[key], value) for key, value in wanted.items())


def test_a_form_of_its_own_fits_its_own_layout_only() -> None:
    student, opt = build(around)
    train(student, opt, 1)
    state = opt.state_dict()
    assert state["opdf"]["class_state"]["layout"][0][0] == "0.bias"
    other = build(around, decay="cores")[1]
    with pytest.raises(InputError, match=r"what Around keeps .* 8 tensors laid out in 2 groups"):
        other.load_state_dict(state)
    plain = build(torch.optim.AdamW)[1]
    state["opdf"]["optimizer"] = "AdamW"
    with pytest.raises(InputError, match="a form of its class's own, that of this AdamW is in tor"):
        plain.load_state_dict(state)
    # Numbers by name speak of no parameter, and fit everywhere.
    student, opt = build(ByText)
    train(student, opt, 1)
    again = build(ByText, batched=True)[1]
    again.load_state_dict(opt.state_dict())
    assert int(again.inner.state["k"]) == 1


@pytest.mark.parametrize("make", [around, Referring])
def test_a_stack_under_a_form_of_its_own_is_not_taken_apart(make: Any) -> None:
    student, opt = build(make, batched=True)
    train(student, opt, 1)
    assert len(opt.program.units) == 1
    student[0].weight.requires_grad_(False)
    before = copy.deepcopy(student.state_dict())
    with pytest.raises(InputError, match="keeps its state in a form of its own.*leave batched out"):
        train(student, opt, 1)
    assert all(torch.equal(student.state_dict()[key], value) for key, value in before.items())


class Keeping(torch.optim.SGD):
    """Keeps what no state holds."""

    def step(self, closure: Any = None) -> Any:
        for p in self.param_groups[-1]["params"]:
            self.state[p]["draw"] = torch.Generator()
        return super().step(closure)


@pytest.mark.parametrize("road", ROADS)
def test_what_cannot_be_kept_is_refused_when_it_is_saved(road: Any, tmp_path: Path) -> None:
    first, second = build(Keeping), build(Keeping)
    train(*first, 1)
    sentence = r"Keeping keeps a Generator in state\[\.\.\]\['draw'\], which no state holds"
    with pytest.raises(InputError, match=sentence):
        road(first, second, tmp_path)
    assert not list(tmp_path.glob("step-*"))


def test_absorbed_weights_start_anew_where_the_form_is_the_classs_own(
    caplog: pytest.LogCaptureFixture,
) -> None:
    student, opt = build(around)
    train(student, opt, 3)
    with torch.no_grad():
        student[0].weight.mul_(2.0)
    opt.absorb()
    assert "Around keeps its state in a form of its own" in caplog.text
    twin = copy.deepcopy(student)
    other = opdf.Overparam(twin, around, lr=0.05, plan=opt.plan)
    for key in opt.program.owned():
        for mine, its in zip(opt.program.cores(key), other.program.cores(key), strict=True):
            its.detach().copy_(mine.detach())
    held = [p for group in other.inner.param_groups for p in group["params"]]
    inner: Any = other.inner
    inner.slow = [p.detach().clone() for p in held]
    train(student, opt, 3)
    train(twin, other, 3)
    assert apart(student, twin) == 0.0, "neither slow weights nor moments are left"


class KeepingBeside(ByText):
    """Keeps beside its parameters' states what no state holds."""

    def step(self, closure: Any = None) -> Any:
        self.state.setdefault("draw", torch.Generator())
        return super().step(closure)


@pytest.mark.parametrize(
    ("make", "batched"),
    covering([around, Referring, Keeping, KeepingBeside, torch.optim.SGD], [True, False]),
)
def test_absorbed_weights_leave_nothing_behind_whatever_a_class_keeps(
    make: Any, batched: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Also of a stack whose other weights had not changed, and of what could not be saved."""
    student, opt = build(make, batched=batched)
    train(student, opt, 2)
    with torch.no_grad():
        student[0].weight.mul_(2.0)
    assert opt.absorb() == ("0.weight",)
    cores = next(unit for unit in opt.program.units if "0.weight" in unit.keys).storage
    assert not any(opt.inner.state.get(core) for core in cores)
    whole = make in (around, Referring, KeepingBeside)
    assert ("a form of its own" in caplog.text) is whole
    assert len(opt.program.units) == (1 if batched and whole else 2)
    assert (
        opt.state[student[0].weight]["cores.0"].data_ptr()
        == opt.program.cores("0.weight")[0].data_ptr()
    )
    train(student, opt, 1)
    torch.testing.assert_close(opdf.fold(opt)[0].weight, student[0].weight)


class TwoGroups(torch.optim.Adagrad):
    """Takes no single group; has a state from the start."""

    def __init__(self, params: Any, **options: Any) -> None:
        groups = list(params)
        if isinstance(groups[0], dict) and len(groups) < 2:
            raise ValueError("two groups are wanted")
        super().__init__(groups, **options)


def test_a_state_from_the_start_is_made_over_all_groups() -> None:
    student = build(ByText)[0]
    groups = [{"params": list(student[place].parameters())} for place in (0, 2)]
    opt = opdf.Overparam(groups, TwoGroups, module=student, lr=0.1, cores=3)
    train(student, opt, 2)
    with torch.no_grad():
        student[0].weight.mul_(2.0)
    opt.absorb()
    first, other = (opt.state_by_name()[f"{place}.weight"] for place in (0, 2))
    assert float(first["cores.0.step"]) == 0.0 and not first["cores.0.sum"].any()
    assert float(other["cores.0.step"]) == 2.0


def test_options_that_are_settings_stay_those_of_the_optimizer() -> None:
    def make(params: Any, **options: Any) -> torch.optim.Optimizer:
        made = torch.optim.SGD(params, **options)
        made.defaults["cast"] = nn.functional.relu
        for group in made.param_groups:
            group["cast"] = nn.functional.relu
        return made

    (student, opt), (_again, second) = build(make), build(make)
    train(student, opt, 1)
    state = through_file(opt.state_dict())
    second.load_state_dict(state)
    assert all(g["cast"] is nn.functional.relu for g in second.inner.param_groups)
    assert isinstance(state["param_groups"][0]["cast"], dict)


def test_the_state_of_a_quantised_tensor(tmp_path: Path) -> None:
    """Of a class that torch may load; another one is refused in test_plain_values."""
    for road in ROADS:
        first, second = build(Quantising), build(Quantising)
        train(*first, 2)
        road(first, second, tmp_path)
        train(*first, 2)
        train(*second, 2)
        assert apart(first[0], second[0]) == 0.0


class Halves(Tensor):
    """A tensor kept in half precision; it knows no clone."""

    half_part: Tensor

    @staticmethod
    def __new__(cls, half: Tensor) -> Halves:
        made: Halves = Tensor._make_wrapper_subclass(cls, half.shape, dtype=torch.float32)
        made.half_part = half
        return made

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["half_part"], None

    @classmethod
    def __tensor_unflatten__(cls, parts: Any, context: Any, size: Any, stride: Any) -> Halves:
        return cls(parts["half_part"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError(f"{func} of a Halves")


torch.serialization.add_safe_globals([Halves])


class Quantising(torch.optim.SGD):
    """Momentum in tensors of a class of its own."""

    def step(self, closure: Any = None) -> Any:
        with torch.no_grad():
            for group in self.param_groups:
                for p in (p for p in group["params"] if p.grad is not None):
                    old = self.state[p].get("m")
                    kept = p.grad if old is None else old.half_part.float() * 0.9 + p.grad
                    self.state[p]["m"] = Halves(kept.half())
                    p.add_(kept, alpha=-group["lr"])
