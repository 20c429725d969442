"""Trials, sources, and a whole study in seconds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from quality import page
from quality.engine import Engine, Run
from quality.methods import BY_NAME, METHODS
from quality.rows import Scores, from_json, rows_of
from quality.sources import read_ts
from quality.study import TINY, run
from quality.tables import primary_table, rules_table, settings_table, text_table
from quality.tasks import Signals, load, split
from quality.trials import Trial, best_of, edges, first_round, later_round
from quality.tuning import tune

from opdf_compile.errors import InputError

TS = """#a comment
@problemName x
@classLabel true up down
@data
1,2,3:4,5,6:down
7,8,9:1,1,1:up
"""


def prepared(path: Path) -> Path:
    """A task that is easy to learn: the class is the sign of the mean."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(160, 16, 1)).astype(np.float32)
    labels = (inputs.mean((1, 2)) > 0).astype(np.int64)
    parts = split(Signals(inputs, labels), (96, 32, 32))
    arrays = {"t/kind": np.asarray("mlp"), "t/classes": np.asarray(2)}
    for part, found in parts.items():
        arrays[f"t/{part}/inputs"], arrays[f"t/{part}/labels"] = found
        arrays[f"t/{part}/teacher"] = np.eye(2, dtype=np.float32)[found.labels] * 4
    np.savez(path, **arrays)
    return path


@pytest.fixture(autouse=True)
def _short_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quality.engine.WARM_STEPS", 30)


def engine(tmp_path: Path) -> Engine:
    task = load(prepared(tmp_path / "d.npz"), "t", torch.device("cpu"))
    return Engine(task, "sgd", record=False)


def test_series_are_read_channels_last() -> None:
    found = read_ts(TS)
    assert found.inputs.shape == (2, 3, 2)
    assert found.inputs[0].tolist() == [[1, 4], [2, 5], [3, 6]]
    assert found.labels.tolist() == [1, 0]
    with pytest.raises(InputError, match="lengths"):
        read_ts(TS.replace("7,8,9", "7,8"))
    with pytest.raises(InputError, match="@classLabel"):
        read_ts(TS.replace("@classLabel", "@other"))


def test_splits_are_disjoint_and_scaled_by_the_training_part() -> None:
    inputs = np.arange(60, dtype=np.float32).reshape(20, 3, 1)
    parts = split(Signals(inputs, np.arange(20)), (10, 5, 5))
    labels = np.concatenate([part.labels for part in parts.values()])
    assert sorted(labels) == list(range(20))
    assert parts["train"].inputs.mean() == pytest.approx(0, abs=1e-6)
    assert abs(parts["test"].inputs.mean()) > 1e-3


def test_every_round_has_as_many_trials_wherever_it_is() -> None:
    assert len(set(first_round("sgd"))) == len(set(first_round("adamw"))) == 36
    for best in (Trial(0.1, 0.0, 0.05), Trial(10.0, 0.02, 1.0), Trial(0.1, 1e-3, 0.6)):
        trials = later_round(best)
        assert best.rate in {trial.rate for trial in trials}
        assert len(trials) == 27


def test_the_best_has_the_accuracy_and_then_the_lower_kl() -> None:
    a, b, c = Trial(1, 0, 0.1), Trial(2, 0, 0.1), Trial(3, 0, 0.1)
    assert best_of({a: (0.9, 1.0), b: (0.9, 0.5), c: (0.8, 0.1)}) == b


def test_an_edge_is_seen_and_a_natural_end_is_none() -> None:
    tried = first_round("sgd")
    rate, lag = tried[0].rate, 0.05
    assert edges(Trial(rate, 0.0, lag), tried) == ["rate", "momentum"]
    wider = [*tried, *later_round(Trial(rate, 2e-2, lag))]
    assert edges(Trial(rate, 2e-2, lag), wider) == []
    assert edges(Trial(rate, 0.0, lag), wider) == []


def test_tuning_finds_a_rate_that_learns(tmp_path: Path) -> None:
    found = tune(engine(tmp_path), [BY_NAME["plain"]], {"plain": 12}, (1, 1))
    assert set(found) == {("plain", "random"), ("plain", "warm")}
    assert found["plain", "warm"].accuracy > 0.8
    assert found["plain", "random"].trials == 63


def test_a_seed_gives_the_same_run_whatever_runs_beside_it(tmp_path: Path) -> None:
    trial = Trial(0.5, 1e-3, 0.1)
    runs = [
        Run(BY_NAME[n], s, seed, trial)
        for n in ("plain", "mpo")
        for s in ("random", "warm")
        for seed in (1, 2)
    ]
    together = engine(tmp_path).run(runs, 10, ("test",))
    (alone,) = engine(tmp_path).run(runs[3:4], 10, ("test",))
    assert alone.scores["test"] == pytest.approx(together[3].scores["test"], rel=1e-4)
    assert together[2].scores["test"] != together[3].scores["test"]


def test_matched_undoes_a_longer_step(tmp_path: Path) -> None:
    """At the matched rate a chain's first step is as long as the plain one, to first order."""
    made = engine(tmp_path)
    made._make_starts({("random", 1)})
    trial = Trial(1e-4, 0.0, 0.1)
    (factor,) = made.matched_factors("mpo", [("random", 1)], trial)
    small = made._first_step("plain", [("random", 1)], trial)
    chain = made._first_step("mpo", [("random", 1)], Trial(1e-4 * factor, 0.0, 0.1))
    assert float(chain / small) == pytest.approx(1.0, rel=0.02)


@pytest.mark.slow
def test_a_study_goes_on_after_a_stop_and_ends_in_rows(tmp_path: Path) -> None:
    assert [m.name for m in METHODS] == list(TINY.methods)
    tiny = TINY.__class__(TINY.steps, TINY.tuning_seeds, 3, ("plain", "mpo"))
    data, path = prepared(tmp_path / "d.npz"), tmp_path / "runs.json"

    def go(settings: tuple[tuple[str, str], ...]) -> dict[str, object]:
        return run(
            data, path, device=torch.device("cpu"), budget=tiny, seconds=100,
            record=False, tasks=("t",), settings=settings,
        )  # fmt: skip

    go((("sgd", "short"),))
    first = json.loads(path.read_text())["units"]
    go((("sgd", "short"), ("sgd", "long")))
    units = json.loads(path.read_text())["units"]
    assert units[0] == first[0]
    assert [(u["optimizer"], u["length"]) for u in units] == [("sgd", "short"), ("sgd", "long")]
    table = tmp_path / "evidence.md"
    table.write_text("words\n<!-- table: primary -->\nold\n<!-- end -->\nmore\n")
    page.write(path, tmp_path / "none", tmp_path / "rows.json", tmp_path / "plot.png", table)
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert len(rows) == 2 * 2 * 2
    assert {"task", "method", "baseline", "difference", "ci_low", "ci_high", "seeds"} <= set(
        rows[0]
    )
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    text = table.read_text()
    assert "old" not in text and text.startswith("words") and text.endswith("more\n")
    assert "| t | accuracy |" in text


def test_a_table_goes_to_its_own_place() -> None:
    place = "a\n<!-- table: {} -->\nold\n<!-- end -->\nb\n".format
    assert page.filled(place("kl") + place("rules"), {"rules": "| new |"}) == (
        place("kl") + place("rules").replace("\nold\n", "\n\n| new |\n\n")
    )


def test_a_winner_at_an_edge_is_told_in_the_table() -> None:
    scores = tuple(np.linspace(0.1, 0.9, 8))
    edge = {"task": "t", "optimizer": "sgd", "start": "warm", "length": "short"}
    row = Scores(
        **edge,
        method="mpo",
        baseline="plain",
        endpoint="accuracy",
        ours=scores,
        theirs=scores[::-1],
    )
    at = [{**edge, "method": "mpo", "axes": ["rate"]}]
    assert primary_table(rows_of([row]), at).endswith("| 8 | mpo: rate |")
    assert primary_table(rows_of([row]), [{**at[0], "task": "u"}]).endswith("| 8 | no |")


ROOT = Path(__file__).resolve().parents[3]


def test_the_page_shows_the_committed_rows() -> None:
    result = json.loads((ROOT / "benchmarks/results/quality.json").read_text())
    rows, edges = from_json(result), result["edges"]
    tables = {
        "primary": primary_table(rows, edges),
        "accuracy": settings_table(rows, "accuracy"),
        "kl": settings_table(rows, "kl"),
        "cosine": text_table(rows, "cosine"),
        "people": text_table(rows, "people"),
        "rules": rules_table(result["rules"]),
    }
    shown = (ROOT / "docs/evidence.md").read_text()
    assert page.filled(shown, tables) == shown
    assert page.filled(shown, {**tables, "kl": "| other |"}) != shown


@pytest.mark.slow
def test_the_committed_rows_come_from_the_committed_runs(tmp_path: Path) -> None:
    results = ROOT / "benchmarks/results"
    page.write(results / "quality-runs.json", results / "quality-text.json", tmp_path / "q.json")
    made, kept = (
        json.loads(p.read_text()) for p in (tmp_path / "q.json", results / "quality.json")
    )
    assert made == kept
