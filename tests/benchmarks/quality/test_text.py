"""The study on text: its search, its students and its endpoints."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from quality.text.command import Runs
from quality.text.corpus import Corpus, _bert, embed_all
from quality.text.prepare import _sentences
from quality.text.scores import scores_of
from quality.text.search import TRIALS, Options, search
from quality.text.training import Spec, correlation, train
from quick import quick

CONFIG = {
    "vocab_size": 30,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_hidden_layers": 6,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
    "initializer_range": 0.4,
}


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    torch.manual_seed(0)
    teacher = _bert(CONFIG, 6)
    sizes = {"train": 64, "validation": 8, "test": 8, "documents": 6}
    ids = {part: torch.randint(1, 30, (n, 8)) for part, n in sizes.items()}
    targets = {part: embed_all(teacher, rows, 0) for part, rows in ids.items()}
    ratings = torch.rand(6, 6, dtype=torch.float64)
    return Corpus(ids, targets, ratings, CONFIG, teacher.state_dict())


def peak(rate: float, decay: float = 0.1, momentum: float = 0.8) -> Any:
    def merit(o: Options) -> float:
        near = abs(math.log(o.lr / rate)) + abs(o.weight_decay - decay)
        return -near - abs(o.momentum - momentum)

    return lambda options: [merit(o) for o in options]


@pytest.mark.parametrize("rate", [2e-5, 1e-4, 2.2e-4, 4e-3, 1.5e-2])
def test_every_method_gets_the_same_number_of_trials_and_finds_its_peak(rate: float) -> None:
    found = search(peak(rate))
    assert found.trials == TRIALS
    assert found.interior
    assert abs(math.log(found.options.lr / rate)) <= math.log(10) / 4 + 1e-9
    assert (found.options.weight_decay, found.options.momentum) == (0.1, 0.8)


def test_a_peak_beyond_the_trials_is_told() -> None:
    assert not search(peak(1e3)).interior


def test_a_run_that_diverged_is_never_the_best() -> None:
    merits = peak(3e-4)

    def attempt(options: list[Options]) -> list[float]:
        return [
            math.nan if o.lr > 5e-4 else m for o, m in zip(options, merits(options), strict=True)
        ]

    assert search(attempt).options.lr <= 5e-4


def test_correlation_is_pearsons_over_pairs() -> None:
    embeddings = torch.nn.functional.normalize(torch.randn(9, 4), dim=1)
    ratings = torch.rand(9, 9, dtype=torch.float64)
    upper = np.triu_indices(9, 1)
    cosines = (embeddings.double() @ embeddings.double().T).numpy()[upper]
    wanted = np.corrcoef(cosines, ratings.numpy()[upper])[0, 1]
    assert correlation(embeddings, ratings) == pytest.approx(wanted, abs=1e-12)
    assert correlation(embeddings, ratings.T.contiguous()) != pytest.approx(wanted, abs=1e-3)


def test_a_warm_student_holds_every_second_layer(corpus: Corpus) -> None:
    state = corpus.student("warm", 0).state_dict()
    for layer in range(3):
        name = "attention.self.query.weight"
        theirs = corpus.teacher[f"encoder.layer.{2 * layer + 1}.{name}"]
        assert torch.equal(state[f"encoder.layer.{layer}.{name}"], theirs)


def test_random_students_differ_by_seed_and_keep_the_embeddings(corpus: Corpus) -> None:
    one, same, other = (corpus.student("random", s).state_dict() for s in (1, 1, 2))
    name = "encoder.layer.0.attention.self.query.weight"
    assert torch.equal(one[name], same[name]) and not torch.equal(one[name], other[name])
    words = "embeddings.word_embeddings.weight"
    assert torch.equal(one[words], corpus.teacher[words])


def spec(method: str) -> Spec:
    return Spec("random", 12, method, 3e-3, 0.01, 0.9, 3)


@pytest.fixture(scope="module")
def runs(corpus: Corpus) -> Callable[[str], dict[str, Any]]:
    """What a run of each method finds, which nobody changes."""
    return functools.cache(lambda method: train(corpus, spec(method)))


@pytest.mark.parametrize("method", quick(["plain", "mpo", "svd", "frozen"], {"plain", "mpo"}))
def test_a_run_comes_nearer_to_the_teacher_and_repeats(
    corpus: Corpus, runs: Callable[[str], dict[str, Any]], method: str
) -> None:
    before = train(corpus, Spec("random", 0, "plain", 0.0, 0.0, 0.9, 3))
    first, second = runs(method), train(corpus, spec(method))
    assert {**first, "seconds": 0} == {**second, "seconds": 0}
    assert first["validation_cosine"] > before["validation_cosine"]
    assert first["ema_validation_cosine"] != first["validation_cosine"]


def test_methods_differ_and_frozen_middle_cores_are_n_2(
    runs: Callable[[str], dict[str, Any]],
) -> None:
    """The middle core starts as the identity: fixed there, it is no core at all."""
    found = {m: runs(m)["test_cosine"] for m in ("plain", "mpo", "svd", "frozen")}
    assert len({found["plain"], found["mpo"], found["svd"]}) == 3
    assert found["frozen"] == pytest.approx(found["svd"], abs=1e-5)


def test_sentences_are_split_and_headings_dropped() -> None:
    text = "One two three four. Too short! Is this a longer one? Yes it is indeed so."
    assert _sentences([text]) == [
        "One two three four.",
        "Is this a longer one?",
        "Yes it is indeed so.",
    ]


def test_finished_runs_are_not_trained_again(tmp_path: Path) -> None:
    spec = Spec("warm", 1, "plain", 1e-3, 0.0, 0.9, 0)
    log = tmp_path / "text.jsonl"
    log.write_text(json.dumps({"spec": spec.row(), "found": {"test_cosine": 0.5}}) + "\n")
    over = Runs(log, deadline=0.0)
    assert over([spec]) == [{"test_cosine": 0.5}]
    assert over([spec, Spec("warm", 2, "plain", 1e-3, 0.0, 0.9, 0)]) is None


def test_scores_pair_methods_by_seed_and_take_the_average_for_ema() -> None:
    def runs(*cosines: float) -> dict[str, Any]:
        return {
            "runs": [
                {"test_cosine": c, "ema_test_cosine": c + 0.1, "people": -c, "ema_people": 0.0}
                for c in cosines
            ]
        }

    plain = {
        "plain": runs(0.1, 0.2),
        "plain + ema": runs(0.3, 0.4),
        "plain, equal wall-clock": runs(0.2, 0.3),
    }
    cells = [
        {"start": "warm", "steps": 75, "finals": plain, "untouched": runs(0.0, 0.0)["runs"]},
        {"start": "warm", "steps": 75, "finals": {"mpo": runs(0.5, 0.7)}},
        {"start": "random", "steps": 300, "finals": {"mpo": runs(0.5, 0.7)}},
    ]
    found = {(s.method, s.baseline, s.endpoint): s for s in scores_of({"cells": cells})}
    assert found["mpo", "plain", "cosine"].ours == (0.5, 0.7)
    assert found["mpo", "plain", "cosine"].theirs == (0.1, 0.2)
    assert found["mpo", "plain", "people"].ours == (-0.5, -0.7)
    assert found["mpo", "plain, equal wall-clock", "cosine"].theirs == (0.2, 0.3)
    assert found["plain + ema", "plain", "cosine"].ours == pytest.approx((0.4, 0.5))
    assert found["no training", "plain", "cosine"].ours == (0.0, 0.0)
    assert {(s.start, s.length) for s in found.values()} == {("warm", "short")}
