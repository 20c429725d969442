"""Prompts and responses: what becomes of them, and that padding is seen by nothing."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from language_models import (
    END,
    SKEW,
    VOCABULARY,
    gpt2,
    llama,
    pairs,
    save_tokenizer,
    write_lines,
    written,
)
from scipy.special import log_softmax
from torch import nn

from opdf_compile.distill.engine import Batches, Evaluation, Machine, Teaching
from opdf_compile.distill.recipe import Job, prepare, read_recipe
from opdf_compile.distill.recipe.examples import Padded
from opdf_compile.distill.recipe.metrics import perplexity_of
from opdf_compile.distill.recipe.tokens import Sequences, example_of
from opdf_compile.errors import RecipeError

TASK = '[[loss]]\nkind = "task"\n'


def job_of(folder: Path, **values: str) -> Job:
    return prepare(read_recipe(written(folder, **values)), base=folder)


def ids(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers)


def test_an_example_predicts_the_response_from_the_last_token_of_the_prompt_on() -> None:
    found = example_of(ids(5, 6, 7), ids(8, 9, 1))
    assert found["input_ids"].tolist() == [5, 6, 7, 8, 9, 1]
    assert found["labels"].tolist() == [-100, -100, 8, 9, 1, -100]
    assert found["loss_mask"].tolist() == found["data_mask"].tolist() == [0, 0, 1, 1, 1, 0]
    assert found["student_mask"].sum() == 0
    assert int(found["prompt_length"]) == 3


def test_all_means_the_prompt_too_and_a_students_response_has_no_labels() -> None:
    whole = example_of(ids(5, 6), ids(8, 1), "all")
    assert whole["labels"].tolist() == [6, 8, 1, -100]
    assert whole["loss_mask"].tolist() == [1, 1, 1, 0]
    own = example_of(ids(5, 6), ids(8, 1), by_student=True)
    assert own["labels"].tolist() == [-100] * 4
    assert own["student_mask"].tolist() == own["loss_mask"].tolist() == [0, 1, 1, 0]
    assert own["data_mask"].sum() == 0


@pytest.mark.parametrize("make", [gpt2, llama])
def test_padding_changes_nothing(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    """Loss, gradient and metric of rows alone and of rows filled up, in float64."""
    torch.manual_seed(0)
    job = job_of(tmp_path, losses=SKEW + TASK)
    student, teacher = make().double().eval(), make().double().eval()
    rows = [job.data.train[place] for place in range(6)]
    assert len({len(row["input_ids"]) for row in rows}) > 1
    losses = job.losses().double()

    def of(batch: dict[str, torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        keys = {name: batch[name] for name in ("input_ids", "attention_mask")}
        ours, theirs = ({"logits": m(**keys).logits} for m in (student, teacher))
        found = losses.pieces(ours, theirs, batch)
        return [*found.values(), job.metric.pieces(ours, theirs, batch)]

    filled = of(Padded("labels")(rows))
    alone = [of(Padded("labels")([row])) for row in rows]
    parameters = list(student.parameters())
    for place, (total, count) in enumerate(filled):
        assert count == sum(found[place][1] for found in alone)
        whole = torch.stack([found[place][0] for found in alone]).sum()
        assert abs(total - whole) <= 1e-12 * abs(whole)
        pulls = (torch.autograd.grad(x, parameters, retain_graph=True) for x in (total, whole))
        for ours, theirs in zip(*pulls, strict=True):
            assert (ours - theirs).abs().max() <= 1e-12 * max(1.0, float(theirs.abs().max()))


def test_what_a_padded_token_holds_is_seen_by_nothing(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    student = job.make_student(0).double().eval()
    batch = job.data.collate([job.data.train[place] for place in range(6)])
    other = {**batch, "input_ids": batch["input_ids"] + (1 - batch["attention_mask"]) * 7}
    assert not torch.equal(batch["input_ids"], other["input_ids"])
    theirs = {"logits": torch.randn(*batch["input_ids"].shape, VOCABULARY, dtype=torch.float64)}
    found = [job.losses().pieces(job.forward(student, b), theirs, b) for b in (batch, other)]
    assert found[0]["skew-kl"][0] == found[1]["skew-kl"][0]


def test_the_metric_is_the_perplexity_of_the_responses_by_hand(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    assert (job.metric.name, job.metric.higher_is_better) == ("perplexity", False)
    assert job.data.inputs == ("input_ids",)
    student = job.make_student(0)
    machine = Machine(torch.device("cpu"))
    evaluation = Evaluation(job, Batches(job.data, machine), Teaching(job, None, machine), batch=5)
    nats = []
    for row in pairs(12, 1):
        whole = [*row["prompt"], *row["response"]]
        with torch.no_grad():
            logits = student.eval()(torch.tensor([whole])).double().numpy()[0]
        logs = log_softmax(logits, axis=-1)
        nats += [-logs[place - 1, whole[place]] for place in range(len(row["prompt"]), len(whole))]
    assert evaluation.of(student, "validation") == pytest.approx(math.exp(np.mean(nats)), rel=1e-6)


def test_a_perplexity_beyond_all_numbers_is_infinite() -> None:
    assert perplexity_of(1e4) == math.inf
    assert math.isnan(perplexity_of(math.nan))
    assert perplexity_of(0.0) == 1.0


def test_texts_are_read_by_the_students_own_tokenizer(tmp_path: Path) -> None:
    gpt2().save_pretrained(tmp_path / "student")
    save_tokenizer(tmp_path / "student")
    rows = [{"prompt": "abc", "answer": "de"}, {"prompt": "a b", "answer": "j"}] * 6
    write_lines(tmp_path / "pairs.jsonl", rows)
    file = written(tmp_path, language='response = "answer"', losses=TASK)
    text = file.read_text().replace("end = 1\n", "")
    for own in ("code.py:student", "code.py:teacher"):
        text = text.replace(own, "hf:student")
    file.write_text(text.replace("code.py:data", "pairs.jsonl"))
    job = prepare(read_recipe(file), base=tmp_path)
    whole = {tuple(job.data.train[n]["input_ids"].tolist()) for n in range(len(job.data.train))}
    assert whole == {(3, 4, 5, 6, 7, END), (3, 13, 4, 12, END)}
    assert job.data.end == END
    assert job.data.inputs == ("input_ids", "attention_mask")


@pytest.mark.parametrize("source", ["rows", "columns", "parts"])
def test_what_a_callable_may_return(source: str, tmp_path: Path) -> None:
    made = {
        "rows": "pairs(52, 0)",
        "columns": "{k: [row[k] for row in pairs(52, 0)] for k in ('prompt', 'response')}",
        "parts": "{'train': pairs(40, 0), 'dev': pairs(12, 1)}",
    }[source]
    file = written(tmp_path)
    code = tmp_path / "code.py"
    code.write_text(f"{code.read_text()}\ndef other(): return {made}\n")
    file.write_text(file.read_text().replace("code.py:data", "code.py:other"))
    job = prepare(read_recipe(file), base=tmp_path)
    assert len(job.data.validation) == (12 if source == "parts" else 8)
    assert isinstance(job.data.train[0]["labels"], torch.Tensor)


def test_the_rows_of_a_saved_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the package datasets, whose rows are mappings of texts and lists, a stand-in."""
    parts = {"train": pairs(20, 0), "valid": pairs(9, 1), "unused": pairs(3, 2)}
    package = SimpleNamespace(load_from_disk=lambda _folder: parts)
    monkeypatch.setitem(sys.modules, "datasets", package)
    (tmp_path / "saved").mkdir()
    file = written(tmp_path)
    file.write_text(file.read_text().replace("code.py:data", "hf:saved"))
    job = prepare(read_recipe(file), base=tmp_path)
    assert len(job.data.train) + len(job.data.test) == 20
    first = parts["valid"][0]
    found = job.data.validation[0]["input_ids"].tolist()
    assert found == [*first["prompt"], *first["response"]]


def test_a_long_response_is_cut(tmp_path: Path) -> None:
    job = job_of(tmp_path, language="max_length = 5")
    lengths = [len(job.data.train[n]["input_ids"]) for n in range(len(job.data.train))]
    assert max(lengths) == 5
    assert min(lengths) >= 4


def test_the_same_examples_have_one_fingerprint_and_others_another(tmp_path: Path) -> None:
    first = job_of(tmp_path).data.fingerprint
    assert job_of(tmp_path, batch="4").data.fingerprint == first
    assert job_of(tmp_path, language='learn = "all"').data.fingerprint != first


BROKEN = {
    "no such field": (
        {"language": 'response = "answer"'},
        ("no field answer, its fields are prompt, response", "name them"),
    ),
    "a prompt without room": (
        {"language": "max_length = 3"},
        ("has a prompt of", "max_length is 3", "raise max_length"),
    ),
}
BROKEN["too many tokens"] = (
    {"generation": '[generation]\npolicy = "on"\nmax_new_tokens = 40'},
    ("the student rejects 44 tokens", "IndexError", "make max_new_tokens smaller"),
)
ROWS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "a number": ({"prompt": 3, "response": [1]}, ("3", "of int", "a list of whole numbers")),
    "halves": ({"prompt": [3, 0.5], "response": [1]}, ("[3, 0.5]", "a text or a list")),
    "nothing to learn": ({"prompt": [3], "response": []}, ("an empty response", "leave")),
    "no prompt": ({"prompt": [], "response": [1]}, ("a prompt of 0 tokens", "leave")),
    "texts without a tokenizer": (
        {"prompt": "a", "response": "b"},
        ("texts and the student is no hf:DIR", 'tokenizer = "hf:DIR"'),
    ),
    "no object": ([1, 2], ("line 2 holds [1, 2]", "wanted an object")),
    "a large id": ({"prompt": [99], "response": [1]}, ("the token id 99", "23 logits", "0 to 22")),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_mistake_in_language(name: str, tmp_path: Path) -> None:
    values, says = BROKEN[name]
    with pytest.raises(RecipeError) as caught:
        job_of(tmp_path, **values)
    require(str(caught.value), *says)


@pytest.mark.parametrize("name", ROWS)
def test_a_mistake_in_a_row(name: str, tmp_path: Path) -> None:
    row, says = ROWS[name]
    write_lines(tmp_path / "pairs.jsonl", [pairs(1, 0)[0], row, *pairs(20, 1)])
    file = written(tmp_path)
    file.write_text(file.read_text().replace("code.py:data", "pairs.jsonl"))
    with pytest.raises(RecipeError) as caught:
        prepare(read_recipe(file), base=tmp_path)
    require(str(caught.value), *says)


def require(message: str, *says: str) -> None:
    assert Path(message.partition(": ")[0]).name.startswith("recipe.toml:"), message
    assert "\n" not in message
    assert [part for part in says if part not in message] == [], message


def test_an_index_beyond_the_end_is_none() -> None:
    with pytest.raises(IndexError, match="example 1 of 1"):
        Sequences([ids(1)], [ids(2)])[1]
