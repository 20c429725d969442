"""trace leaves the caller's model as it was, whatever its forward keeps beside its output.

Each case keeps something in another place. `state` reads that place; the test first shows that the
model's own forward does change it, so that a place which is not read cannot pass.
"""

from __future__ import annotations

import functools
import random
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from quick import quick
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.graph.as_before import as_before
from opdf_compile.graph.probe import run_model

X = torch.linspace(-1.0, 1.0, 12).reshape(3, 4)
SEEN: dict[str, Any] = {}
COUNT = 0


class Box:
    """An object that is no module."""

    def __init__(self) -> None:
        self.seen: list[Any] = []


class Slotted:
    __slots__ = ("__own", "late", "value")

    def __init__(self) -> None:
        self.value: Any = None
        self.hide(None)

    def hide(self, value: Any) -> None:
        self.__own = value

    def hidden(self) -> Any:
        return self.__own


class Guarded(set[int]):
    """A set that its users cannot empty."""

    def clear(self) -> None:
        raise RuntimeError("guarded")


class Case(nn.Module):
    """A linear layer, and something beside it."""

    shared: dict[str, Any] = {}
    default: Any = None

    def __init__(self, prepare: Callable[[Case], Any], keep: Callable[[Case, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 4)
        self.keep = keep
        prepare(self)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        self.keep(self, y)
        return y


@functools.lru_cache
def positions(count: int) -> Tensor:
    return torch.arange(count, dtype=torch.float32)


def _count_globally(_m: Case, _y: Tensor) -> None:
    global COUNT
    COUNT += 1


def _counting_hook() -> tuple[Callable[..., None], Callable[[], int]]:
    count = 0

    def hook(*_: Any) -> None:
        nonlocal count
        count += 1

    return hook, lambda: count


LATE: Tensor


def _make_globally(_m: Case, y: Tensor) -> None:
    global LATE
    LATE = y


def _hook(m: Case) -> None:
    hook, m.read = _counting_hook()
    m.layer.register_forward_hook(hook)


def _hidden(m: Case) -> None:
    m.hidden = [nn.Linear(4, 4), nn.BatchNorm1d(4)]


def _replace_a_buffer(m: Case, y: Tensor) -> None:
    m.mean = 0.9 * m.mean + y.detach().mean(0)


def _new_buffer(m: Case, y: Tensor) -> None:
    m.register_buffer("late", torch.zeros(y.shape[-1]), persistent=False)


def _new_module(m: Case, _y: Tensor) -> None:
    m.late = nn.Linear(4, 4)


def nothing(*_: Any) -> None:
    pass


Row = tuple[Callable[[Case], Any], Callable[[Case, Tensor], Any], Callable[[Case], Any]]
CASES: dict[str, Row] = {
    "a new attribute": (
        nothing,
        lambda m, y: setattr(m, "grid", torch.arange(y.shape[-1])),
        lambda m: vars(m).get("grid"),
    ),
    "a class default that the instance hides": (
        nothing,
        lambda m, y: setattr(m, "default", y.shape),
        lambda m: vars(m).get("default"),
    ),
    "an attribute that is replaced": (
        lambda m: setattr(m, "last", None),
        lambda m, y: setattr(m, "last", y),
        lambda m: m.last,
    ),
    "a counter": (
        lambda m: setattr(m, "count", 0),
        lambda m, y: setattr(m, "count", m.count + 1),
        lambda m: m.count,
    ),
    "a list": (
        lambda m: setattr(m, "seen", []),
        lambda m, y: m.seen.append(y),
        lambda m: m.seen,
    ),
    "a dict in a tuple in a dict": (
        lambda m: setattr(m, "seen", {"a": ({},)}),
        lambda m, y: m.seen["a"][0].update(h=y),
        lambda m: m.seen["a"][0],
    ),
    "an ordered dict, its order": (
        lambda m: setattr(m, "seen", OrderedDict(a=1, b=2)),
        lambda m, y: m.seen.move_to_end(next(iter(m.seen))),
        lambda m: m.seen,
    ),
    "a deque": (
        lambda m: setattr(m, "seen", deque([1, 2], maxlen=2)),
        lambda m, y: m.seen.append(3),
        lambda m: m.seen,
    ),
    "a set": (
        lambda m: setattr(m, "seen", {1}),
        lambda m, y: m.seen.add(2),
        lambda m: m.seen,
    ),
    "a set that guards its methods": (
        lambda m: setattr(m, "seen", Guarded({1})),
        lambda m, y: m.seen.add(2),
        lambda m: sorted(m.seen),
    ),
    "an object": (
        lambda m: setattr(m, "box", Box()),
        lambda m, y: m.box.seen.append(y),
        lambda m: m.box.seen,
    ),
    "an object with slots": (
        lambda m: setattr(m, "box", Slotted()),
        lambda m, y: setattr(m.box, "value", y),
        lambda m: m.box.value,
    ),
    "a slot that was empty": (
        lambda m: setattr(m, "box", Slotted()),
        lambda m, y: setattr(m.box, "late", y),
        lambda m: getattr(m.box, "late", None),
    ),
    "a private slot": (
        lambda m: setattr(m, "box", Slotted()),
        lambda m, y: m.box.hide(y),
        lambda m: m.box.hidden(),
    ),
    "a plain tensor, in place": (
        lambda m: setattr(m, "total", torch.zeros(())),
        lambda m, y: m.total.add_(1),
        lambda m: m.total,
    ),
    "a tensor in a list, in place": (
        lambda m: setattr(m, "totals", [torch.zeros(2).expand(3, 2)[0]]),
        lambda m, y: m.totals[0].add_(1),
        lambda m: m.totals[0],
    ),
    "an array": (
        lambda m: setattr(m, "counts", np.zeros(3)),
        lambda m, y: m.counts.__iadd__(1),
        lambda m: m.counts,
    ),
    "a buffer that is replaced": (
        lambda m: m.register_buffer("mean", torch.zeros(4), persistent=False),
        _replace_a_buffer,
        lambda m: m.mean,
    ),
    "a buffer in place": (
        lambda m: m.register_buffer("mean", torch.zeros(4)),
        lambda m, y: m.mean.add_(1),
        lambda m: m.mean,
    ),
    "a buffer in ways that do not count": (
        lambda m: m.register_buffer("mean", torch.zeros(4)),
        lambda m, y: m.mean.data.add_(1),
        lambda m: m.mean,
    ),
    "a buffer's memory": (
        lambda m: m.register_buffer("mean", torch.zeros(4)),
        lambda m, y: setattr(m.mean, "data", torch.ones(2, dtype=torch.float64)),
        lambda m: m.mean,
    ),
    "a new buffer": (nothing, _new_buffer, lambda m: dict(m.named_buffers())),
    "a new module": (nothing, _new_module, lambda m: list(m._modules)),
    "a flag": (
        lambda m: setattr(m, "drop", nn.Dropout()),
        lambda m, y: setattr(m.drop, "training", "odd"),
        lambda m: m.drop.training,
    ),
    "hidden modules": (
        _hidden,
        lambda m, y: m.hidden[1](m.hidden[0](y)),
        lambda m: m.hidden[1].num_batches_tracked,
    ),
    "an attribute of a parameter": (
        nothing,
        lambda m, y: setattr(m.layer.weight, "seen", y),
        lambda m: vars(m.layer.weight).get("seen"),
    ),
    "the class": (
        nothing,
        lambda m, y: setattr(type(m), "default", y),
        lambda m: Case.default,
    ),
    "a new name of the class": (
        nothing,
        lambda m, y: setattr(type(m), "late", y),
        lambda m: vars(Case).get("late"),
    ),
    "a dict of the class": (
        nothing,
        lambda m, y: m.shared.update(h=y),
        lambda m: Case.shared,
    ),
    "a hook's closure": (_hook, nothing, lambda m: m.read()),
    "a hook's global dict": (
        lambda m: m.layer.register_forward_hook(lambda _m, _a, y: SEEN.update(h=y)),
        nothing,
        lambda m: SEEN,
    ),
    "a global": (nothing, _count_globally, lambda m: COUNT),
    "a new global": (nothing, _make_globally, lambda m: globals().get("LATE")),
    "a default argument": (
        nothing,
        lambda m, y, seen=[]: seen.append(y),  # noqa: B006
        lambda m: m.keep.__defaults__[0],
    ),
    "a function's own attribute": (
        nothing,
        lambda m, y: setattr(m.keep, "last", y),
        lambda m: vars(m.keep).get("last"),
    ),
    "a cached function": (
        nothing,
        lambda m, y: positions(y.shape[-1]),
        lambda m: positions.cache_info().currsize,
    ),
    "a generator of its own": (
        lambda m: setattr(m, "draw", random.Random(3)),
        lambda m, y: m.draw.random(),
        lambda m: m.draw.getstate(),
    ),
    "a generator of numpy": (
        lambda m: setattr(m, "draw", np.random.default_rng(3)),
        lambda m, y: m.draw.random(),
        lambda m: m.draw.bit_generator.state,
    ),
    "a generator of torch": (
        lambda m: setattr(m, "draw", torch.Generator().manual_seed(3)),
        lambda m, y: m.draw.manual_seed(4),
        lambda m: m.draw.get_state(),
    ),
    "Python's generator": (nothing, lambda m, y: random.random(), lambda m: random.getstate()),
    "numpy's generator": (
        nothing,
        lambda m, y: np.random.random(),  # noqa: NPY002
        lambda m: np.random.get_state()[1],  # noqa: NPY002
    ),
}


def picture(value: Any) -> Any:
    """A value that can be compared: kinds and numbers, and no object that may change under it."""
    if isinstance(value, Tensor | np.ndarray):
        numbers = value.detach() if isinstance(value, Tensor) else value
        return type(value), value.dtype, tuple(value.shape), numbers.tolist()
    if isinstance(value, dict):
        return type(value), [(key, picture(entry)) for key, entry in value.items()]
    if isinstance(value, list | tuple | deque):
        return type(value), [picture(entry) for entry in value]
    return type(value), frozenset(value) if isinstance(value, set) else value


def case(name: str) -> tuple[Case, Callable[[], Any]]:
    prepare, keep, state = CASES[name]
    model = Case(prepare, keep)
    return model, lambda: picture(state(model))


@pytest.fixture(autouse=True)
def _clean() -> Any:
    yield
    SEEN.clear()
    Case.shared.clear()
    Case.default = None
    positions.cache_clear()
    if "late" in vars(Case):
        delattr(Case, "late")


@pytest.mark.parametrize("name", CASES)
def test_what_a_forward_keeps_is_put_back(name: str) -> None:
    model, state = case(name)
    before = state()
    with as_before(model), torch.random.fork_rng(devices=[]):
        model(X)
        assert state() != before, "this case reads nothing that its forward changes"
    assert state() == before
    opdf.trace(model, (X,), phases=("eval",))
    assert state() == before
    run_model(model, "train", ((X,), {}))
    assert state() == before


FAILING = ("a new attribute", "a list", "hidden modules", "a new buffer", "the class", "a global")


@pytest.mark.parametrize("name", quick(FAILING, {"hidden modules", "a new buffer"}))
def test_it_is_put_back_when_tracing_fails(name: str) -> None:
    model, state = case(name)
    keep = model.keep

    def fail(m: Case, y: Tensor) -> None:
        keep(m, y)
        if y.sum() > 0:
            m.layer(y)

    model.keep = fail
    before = state()
    traced = opdf.trace(model, (X,))
    assert traced.rungs == {"train": "module", "eval": "module"}
    assert state() == before
    bad = torch.zeros(3, 5)
    with pytest.raises(opdf.UserError):
        opdf.trace(model, (bad,))
    assert state() == before


def test_one_phase_does_not_read_what_the_other_kept() -> None:
    """A grid that is made once for each shape would be the other phase's stand-in."""

    def grid(m: Case, y: Tensor) -> None:
        if getattr(m, "shape", None) != y.shape:
            m.shape, m.grid = y.shape, torch.arange(y.shape[-1], dtype=y.dtype)
        m.out = y * m.grid

    class Head(Case):
        def forward(self, x: Tensor) -> Tensor:
            super().forward(x)
            out: Tensor = self.out
            return out

    model = Head(nothing, grid)
    wanted = model.layer(X) * torch.arange(4.0)
    traced = opdf.trace(model, (X,))
    assert traced.rungs == {"train": "dynamic", "eval": "dynamic"}
    for graph in traced.graphs.values():
        torch.testing.assert_close(graph(X), wanted)
    assert torch.allclose(
        opdf.fold(opdf.expand(traced, opdf.plan(traced, cores=2, min_size=1)))(X), wanted
    )


def test_what_was_kept_before_stays_the_same_object() -> None:
    model = Case(lambda m: setattr(m, "seen", [X]), lambda m, y: m.seen.clear())
    kept, attribute = model.seen, vars(model)
    opdf.trace(model, (X,))
    assert model.seen is kept and kept[0] is X and vars(model) is attribute


def test_the_generators_of_devices_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    states: list[Any] = ["as it was"]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: states[-1])
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", states.append)
    with as_before(Case(nothing, nothing)):
        states.append("drawn from")
    assert states == ["as it was", "drawn from", "as it was"]


class Stuck(random.Random):
    """A generator that cannot be put back."""

    error: type[BaseException] = RuntimeError

    def setstate(self, state: Any) -> None:
        raise self.error("stuck")


class Interrupted(Stuck):
    error = KeyboardInterrupt


@pytest.mark.parametrize("kind", [Stuck, Interrupted])
@pytest.mark.parametrize("order", [1, -1])
def test_all_else_is_put_back_where_something_cannot_be(order: int, kind: type[Stuck]) -> None:
    def prepare(m: Case) -> None:
        places = {"first": [0], "draw": kind(3), "last": [0]}
        for name, value in list(places.items())[::order]:
            setattr(m, name, value)

    model = Case(prepare, lambda m, _y: [m.first.append(1), m.last.append(1)])
    with pytest.raises(kind.error, match="stuck"), as_before(model):
        model(X)
    assert (model.first, model.last) == ([0], [0])


def test_objects_far_away_go_on_by_themselves() -> None:
    """A trainer's queue behind three objects is not rolled back; what lies nearer is."""
    far, near = Box(), Box()
    near.seen.append(Box())
    near.seen[0].seen.append(far)

    def keep(m: Case, _y: Tensor) -> None:
        near.seen.append(1)
        far.seen.append(1)

    model = Case(lambda m: setattr(m, "box", near), nothing)
    with as_before(model):
        keep(model, X)
    assert len(near.seen) == 1 and far.seen == [1]
