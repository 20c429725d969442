"""The text task: weight-only methods on a tiny BERT, as a loop by hand has it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from quality.fleet import schedule
from quality.second.groups import groups_of
from quality.second.methods import METHODS
from quality.second.plan import CONFIRMATION
from quality.second.search import Trial
from quality.second.store import Store
from quality.second.tasks import TEXT, TEXT_STUDENT
from quality.second.textual import TextProblem
from quality.second.training import Run, batches, train
from quality.text.corpus import Corpus, _bert, embed, embed_all

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
STEPS = 3


@pytest.fixture(scope="module", name="problem")
def made() -> TextProblem:
    torch.manual_seed(0)
    teacher = _bert(CONFIG, 6)
    sizes = {"train": 64, "validation": 8, "test": 8, "documents": 6}
    ids = {part: torch.randint(1, 30, (n, 8)) for part, n in sizes.items()}
    targets = {part: embed_all(teacher, rows, 0) for part, rows in ids.items()}
    corpus = Corpus(ids, targets, torch.rand(6, 6), CONFIG, teacher.state_dict())
    return TextProblem(corpus, STEPS)


def run(method: str, trial: Trial, seed: int = 1000) -> Run:
    return Run(TEXT, TEXT_STUDENT, "distil", method, STEPS, trial, seed)


@pytest.mark.slow
def test_a_plain_run_is_a_loop_by_hand(problem: TextProblem) -> None:
    found = train(problem, run("plain", Trial("adamw", -6)))
    corpus, rate = problem.corpus, 1e-3
    model, order = corpus.student("warm", 0), batches(64, 1000)
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.0)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = rate * schedule(step, STEPS)
        rows = next(order)
        made = embed(model, corpus.ids["train"][rows], 0)
        optimizer.zero_grad()
        (1 - torch.cosine_similarity(made, corpus.targets["train"][rows]).mean()).backward()
        optimizer.step()
    test = embed_all(model, corpus.ids["test"], 0)
    cosine = float(torch.cosine_similarity(test, corpus.targets["test"]).mean())
    assert found["test"] == pytest.approx((cosine, 1 - cosine), rel=1e-4)


@pytest.mark.parametrize("name", ["gains", "md", "hyperball", "ham", "ham-decay", "wide", "mpo"])
def test_weight_only_methods_train_it(problem: TextProblem, name: str) -> None:
    before = problem.scores(problem.begun(0), "validation")
    found = train(problem, run(name, Trial("adamw", -6), seed=200))
    assert found["validation"] != pytest.approx(before)


def test_its_stage_asks_for_weight_only_methods_alone() -> None:
    (stage,) = [stage for stage in CONFIRMATION if stage.student == TEXT_STUDENT]
    store = Store(Path("none"))
    assert stage.tasks == (TEXT,)
    (group,) = groups_of(store, stage, TEXT)
    assert set(group.tuned) == {"plain", "md", "hyperball"}
    every = replace(stage, methods=tuple(method.name for method in METHODS))
    (group,) = groups_of(store, every, TEXT)
    assert {"plain", "gains", "mpo"} <= set(group.tuned)
    assert not {"repvgg", "acnet", "orepa", "do_conv", "repopt"} & set(group.tuned)
