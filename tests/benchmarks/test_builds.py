"""Two builds in one race: the parts of a lap, the ratios, the workers. No test looks at a time."""

from __future__ import annotations

import ast
import gc
import io
import json
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from bench.builds import BENCHMARKS, CHECKOUT, Build, other, worker
from bench.clock import repeats
from bench.forms import Form, Lap
from bench.lap_worker import serve
from bench.laps import OwnLaps, Setting
from bench.step_rows import COMPOSE, CORES, WEIGHTS, build_rows, rows_of
from training_step import Bench, main

import opdf_compile as opdf

TINY = Setting("tiny", ("plain", "hoisted"), clock="cpu", threads=1)


class Ticks:
    """A clock that stands still but for what is planted, and a student and an optimizer on it."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time

    mark = now

    def between(self, first: float, last: float) -> float:
        return last - first

    def loss(self, model: Any) -> torch.Tensor:
        self.time += 3.0
        return torch.ones((), requires_grad=True)

    def step(self) -> None:
        self.time += 2.0

    def zero_grad(self) -> None:
        self.time += 0.5


def test_a_lap_is_the_mean_of_its_steps_and_their_optimizer_part():
    ticks: Any = Ticks()
    form = Form("hoisted", ticks, torch.nn.Identity(), ticks)
    # Two micro-batches of 3 s, the optimizer's 2 s, and half a second to clear gradients.
    assert form.lap(2, ticks, steps=4) == Lap(8.5, 2.0)
    assert ticks.time == 4 * 8.5


def test_what_is_short_is_repeated():
    assert repeats(1e-3) == 20 and repeats(3.0) == 1 and repeats(0.0) == 100


class Fake:
    """A build whose laps take what is planted, on a machine that slows down with every lap."""

    def __init__(self, **laps: Lap) -> None:
        self.laps, self.counts = laps, dict.fromkeys(laps, 0)

    def lap(self, form: str, accumulation: int) -> Lap:
        self.counts[form] += 1
        lap = self.laps[form]
        return Lap(lap.seconds * self.counts[form], lap.optimizer * self.counts[form])


@pytest.fixture(scope="module")
def plan() -> opdf.Plan:
    return TINY.planned()[2]


def raced(plan: opdf.Plan, ours: Fake, theirs: Fake | None) -> tuple[Any, Any]:
    floor = {name: (lambda: 0.25) for name in (COMPOSE, CORES, WEIGHTS)}
    options = Namespace(seed=0, rounds=5, budget=1.0)
    bench = Bench(TINY, plan, ours, theirs, floor)
    return bench.run(1, options, lambda text, share: None)


@pytest.mark.parametrize(("slower", "part"), [(2.0, 4.0), (0.5, 0.25)])
def test_a_build_that_is_slower_is_seen_as_slower(plan: opdf.Plan, slower: float, part: float):
    """And one that is faster as faster; the machine's own slowing is in neither ratio."""
    plain = Lap(1.0, 0.5)
    ours = Fake(plain=plain, hoisted=Lap(4.0 * slower, 2.0 * part))
    times, parts = raced(plan, ours, Fake(plain=plain, hoisted=Lap(4.0, 2.0)))
    by_form = {row["form"]: row for row in build_rows("tiny", 1, times, parts, 0)}
    assert ours.counts == {"plain": 5, "hoisted": 5}
    null, found = by_form["plain"], by_form["hoisted"]
    assert null["ratio"] == null["optimizer_ratio"] == null["against_over_plain"] == 1.0
    for key, wanted in (("ratio", slower), ("ci_low", slower), ("ci_high", slower)):
        assert found[key] == pytest.approx(wanted, rel=1e-12)
    for key in ("optimizer_ratio", "optimizer_low", "optimizer_high"):
        assert found[key] == pytest.approx(part, rel=1e-12)
    assert found["against_over_plain"] == pytest.approx(4.0, rel=1e-12)
    # Medians over the rounds: each lap is as many times as long as there were laps before it.
    assert (found["seconds"], found["against_seconds"]) == (12.0 * slower, 12.0)
    assert found["against_optimizer_seconds"] == 6.0 and found["rounds"] == 5


def test_the_other_builds_step_is_over_its_own_plain_step(plan: opdf.Plan):
    ours, theirs = (Fake(plain=Lap(s, 0.5), hoisted=Lap(4.0, 2.0)) for s in (1.0, 2.0))
    times, parts = raced(plan, ours, theirs)
    null, found = build_rows("tiny", 1, times, parts, 0)
    assert null["ratio"] == 0.5 and found["against_over_plain"] == 2.0


def test_the_rows_of_one_build_have_the_optimizer_part(plan: opdf.Plan):
    times, parts = raced(plan, Fake(plain=Lap(1.0, 0.5), hoisted=Lap(4.0, 3.0)), None)
    plain, hoisted = rows_of("tiny", 1, plan, times, parts, 0)
    assert (plain["optimizer_share"], plain["optimizer_ratio"]) == (0.5, 1.0)
    assert (hoisted["optimizer_share"], hoisted["optimizer_ratio"]) == (0.75, 6.0)
    assert hoisted["optimizer_seconds"] == 9.0 and hoisted["ratio"] == pytest.approx(4.0)


@pytest.fixture
def _collecting() -> Iterator[None]:
    yield
    gc.enable()


@pytest.mark.usefixtures("_collecting")
def test_a_worker_answers_each_order_with_a_line():
    setting = {**vars(TINY), "threads": None}
    orders = [setting, ["hoisted", 1], ["plain", 2]]
    replies = io.StringIO()
    serve(io.StringIO("".join(json.dumps(order) + "\n" for order in orders)), replies)
    facts, *laps = map(json.loads, replies.getvalue().splitlines())
    assert facts["package"] == opdf.__file__ and facts["weights"] == 2 and facts["scale"] > 1
    assert len(laps) == 2 and all(0 < part < seconds for seconds, part in laps)


def imported(file: Path) -> set[str]:
    """The dotted names that a file imports, wherever it does."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def test_a_worker_imports_only_what_every_build_has():
    """Names within opdf_compile move; these stood where they stand in the oldest build raced."""
    todo, names, files = ["lap_worker"], set(), set()
    while todo:
        files.add(todo[-1])
        new = imported(BENCHMARKS / f"bench/{todo.pop()}.py")
        names |= new
        todo += {name.split(".")[1] for name in new if name.startswith("bench.")} - files
    # What stands as `from bench import students` is a file, too.
    assert files == {"lap_worker", "laps", "forms", "students", "llama", "clock"}
    assert {name for name in names if name.startswith("opdf_compile")} == {
        "opdf_compile",
        "opdf_compile.io.torchvision_shim.prepare_torchvision",
    }


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ('{"package": "/elsewhere/opdf_compile/__init__.py"}', "which is not in"),
        ("", 'ended at {"model": "tiny"'),
    ],
)
def test_a_process_that_runs_no_such_build_ends_the_race(
    said: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """A stand-in for Python: it answers the setting with a line, or with its end."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nread order\necho '{said}'\n" if said else "#!/bin/sh\n")
    python.chmod(0o755)
    with pytest.raises(SystemExit) as stopped, worker(Build(tmp_path, python), TINY):
        pass
    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and sentence in printed and str(tmp_path) in printed


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--against", "."), "--against is {here}, which holds no opdf_compile; give a checkout"),
        (("--against", str(CHECKOUT), "--profile"), "give it without --against"),
        (("--against", str(CHECKOUT), "--against-python", "none"), "{here}/none does not exist"),
        (("--cores", "3", "--default-plan"), "are two plans; give one of them"),
    ],
)
def test_bad_words_are_one_sentence(
    words: tuple[str, ...],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert sentence.format(here=tmp_path) in capsys.readouterr().err


def test_a_checkout_brings_its_own_python(tmp_path: Path):
    (tmp_path / "opdf_compile").mkdir()
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    # The link itself: what it leads to knows nothing of the environment.
    assert other(tmp_path, None) == Build(tmp_path, python)
    assert other(tmp_path, Path(sys.executable)).python == Path(sys.executable)
    assert other(tmp_path, None).commit is None


@pytest.mark.slow
def test_a_race_of_a_build_against_itself(tmp_path: Path):
    path = tmp_path / "builds.json"
    words = ("--models", "tiny", "--threads", "1", "--clock", "cpu", "--rounds", "3")
    more = ("--accumulation", "2", "--forms", "default", "--json", str(path))
    main([*words, *more, "--against", str(CHECKOUT), "--against-python", sys.executable])
    value = json.loads(path.read_text())
    assert [row["form"] for row in value["rows"]] == ["plain", "default"]
    ours, theirs = value["against"]["builds"]
    assert (ours.pop("build"), theirs.pop("build")) == ("this", "other") and ours == theirs
    assert ours["weights"] == 2 and ours["threads"] == 1
    for row in value["against"]["rows"]:
        assert row["accumulation"] == 2 and row["rounds"] == 3
        assert 0 < row["against_optimizer_seconds"] < row["against_seconds"]
        assert 0 < row["optimizer_low"] <= row["optimizer_ratio"] <= row["optimizer_high"]
    assert str(CHECKOUT) not in path.read_text()


def test_the_default_plan_is_what_plan_makes_by_itself():
    asked = Setting("tiny", ("plain",), default_plan=True)
    _, traced, plan = asked.planned()
    assert plan == opdf.plan(traced)
    assert Setting("tiny", ("plain",), cores=2).planned()[2] == opdf.plan(traced, cores=2) != plan


def test_laps_in_this_process_are_of_the_forms_that_were_asked_for(plan: opdf.Plan):
    laps = OwnLaps(TINY, *TINY.planned())
    assert tuple(laps.forms) == TINY.forms
    lap = laps.lap("hoisted", 1)
    assert 0 < lap.optimizer < lap.seconds
