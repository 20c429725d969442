"""Where a step's batches come from, and what they hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from language_models import END, SKEW, Causal, written
from scipy.special import log_softmax

from opdf_compile.distill.engine import Machine, Setup, Teaching, TrainingStep, set_up
from opdf_compile.distill.engine.written import WrittenBatches
from opdf_compile.distill.generation import respond
from opdf_compile.distill.recipe import prepare, read_recipe
from opdf_compile.training import Overparam

SHORT = "max_new_tokens = 5"
MACHINE = Machine(torch.device("cpu"), "fp64")
SECOND = (
    '[[loss]]\nkind = "skew-kl"\nmask = "data_mask"\n'
    '[[loss]]\nkind = "reverse-skew-kl"\nmask = "student_mask"\ndetach = true\n'
)


def setup_of(folder: Path, policy: str, more: str = SHORT, **values: str) -> Setup:
    generation = f'[generation]\npolicy = "{policy}"\n{more}'
    job = prepare(read_recipe(written(folder, generation=generation, **values)), base=folder)
    student = MACHINE.widened(job.make_student(0))
    return set_up(job, MACHINE, student, job.plan(student), seed=0)


def source_of(setup: Setup) -> WrittenBatches:
    return WrittenBatches(setup, 0, 1)


def step_of(setup: Setup) -> TrainingStep:
    return TrainingStep(setup, Teaching(setup.job, MACHINE.teacher(setup.job.teacher), MACHINE))


def test_the_student_answers_the_prompts_of_the_batch(tmp_path: Path) -> None:
    setup = setup_of(tmp_path, "on")
    drawn = source_of(setup).batches(3)[0]
    rows, indices = drawn.batch, setup.order.batches(3)[0]
    assert drawn.indices is None
    assert (rows["labels"] == -100).all()
    assert torch.equal(rows["student_mask"], rows["loss_mask"])
    assert rows["data_mask"].sum() == 0
    for row, index in enumerate(indices):
        example = setup.job.data.train[index]
        prompt = int(example["prompt_length"])
        length = int(rows["attention_mask"][row].sum())
        assert torch.equal(rows["input_ids"][row, :prompt], example["input_ids"][:prompt])
        assert 1 <= length - prompt <= 5
        response = rows["input_ids"][row, prompt:length].tolist()
        assert END not in response[:-1]
        assert int(rows["loss_mask"][row].sum()) == len(response)


def test_the_plain_student_writes_while_its_cores_are_trained(tmp_path: Path) -> None:
    setup = setup_of(tmp_path, "on", f"{SHORT}\ntemperature = 0.0", plan="cores = 2")
    assert isinstance(setup.optimizer, Overparam)
    step = step_of(setup)
    for number in range(4):
        step(number)
    drawn = step.source.batches(4)[0].batch
    plain = Causal(16, 1).double()
    plain.load_state_dict(setup.deployed().state_dict())
    prompts = [
        row[:length]
        for row, length in zip(drawn["input_ids"], drawn["prompt_length"].tolist(), strict=True)
    ]
    found = respond(plain, prompts, step.source._sampling, end=END, seed=0)  # type: ignore[attr-defined]
    for row, (prompt, response) in enumerate(zip(prompts, found, strict=True)):
        whole = torch.cat([prompt, response])
        assert torch.equal(drawn["input_ids"][row, : len(whole)], whole)
        assert int(drawn["attention_mask"][row].sum()) == len(whole)


def test_a_mixed_policy_writes_its_share(tmp_path: Path) -> None:
    source = source_of(setup_of(tmp_path, "mixed", f"{SHORT}\nshare = 0.3"))
    for number in range(60):
        source.batches(number)
    counts = source.state()["counts"]
    assert counts["data"] + counts["student"] == 60
    # Four standard deviations of 60 draws.
    assert abs(counts["student"] - 18) <= 4 * (60 * 0.3 * 0.7) ** 0.5
    assert counts["tokens"] >= 8 * counts["student"]


@pytest.mark.parametrize("policy", ["data", "adaptive"])
def test_batches_are_those_of_the_data_while_nothing_is_written(
    policy: str, tmp_path: Path
) -> None:
    setup = setup_of(tmp_path, policy)
    drawn = source_of(setup).batches(2)[0]
    assert drawn.indices == setup.order.batches(2)[0]
    assert (drawn.batch["labels"] >= 0).any()


def test_the_adaptive_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every batch of a run against the rules, from the draws and the losses alone."""
    more = f"{SHORT}\nbuffer = 16\nrise = 0.4\ntolerance = 0.05"
    setup = setup_of(tmp_path, "adaptive", more, training="epochs = 8")
    source, losses = source_of(setup), iter([2.0, 2.04, 2.1, 2.2, 2.0, 2.2, 2.5, 2.6])
    monkeypatch.setattr(source._evaluation, "of", lambda *_: next(losses))
    # At the start of each of 8 epochs of 5 steps.
    phis = [0.0, 0.0, 0.4, 0.8, 0.8, 0.8, 1.0, 1.0]
    held, seen = 0, set()
    for number in range(setup.steps):
        before = dict(source.counts)
        batch = source.batches(number)[0].batch
        came = next(k for k in ("data", "student", "buffer") if source.counts[k] > before.get(k, 0))
        phi, t = phis[number // 5], number + 1
        u = np.random.default_rng([0, number, 0, 1]).uniform()
        if u < phi * (1 - t / 40) or (u < phi and held < 16):
            wanted, held = "student", min(16, held + 8)
        else:
            wanted = "buffer" if u < phi else "data"
        assert (number, came) == (number, wanted)
        assert len(source.buffer) == held
        assert bool((batch["labels"] >= 0).any()) == (came == "data")
        seen.add(came)
    assert seen == {"data", "student", "buffer"}
    assert source.policy.phi == phis[-1]


def test_a_state_is_taken_up(tmp_path: Path) -> None:
    more = f"{SHORT}\nbuffer = 16\nrise = 1.0"
    sources = [source_of(setup_of(tmp_path, "adaptive", more)) for _ in range(2)]
    sources[0].policy.phi = 1.0
    for number in (1, 2, 3):
        sources[0].batches(number)
    sources[1].load(sources[0].state(), sources[0].tensors())
    assert sources[1].state() == sources[0].state()
    ours, theirs = (source.batches(9)[0].batch for source in sources)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_paired_batches_are_the_second_systems_objective(tmp_path: Path) -> None:
    """(2 - b) SKL on the responses of the data + b SRKL on the student's, b = 1, in numpy."""
    setup = setup_of(tmp_path, "paired", losses=SECOND)
    step = step_of(setup)
    student = Causal(16, 1).double()
    student.load_state_dict(setup.student.state_dict())
    batch = source_of(setup).batches(0)[0].batch
    parts, _ = step(0)
    assert len(batch["input_ids"]) == 16
    with torch.no_grad():
        q, p = (
            np.exp(log_softmax(model(batch["input_ids"]).numpy(), -1))
            for model in (student.eval(), setup.job.teacher.double())  # type: ignore[union-attr]
        )
    first = (p * np.log(p / (0.1 * p + 0.9 * q))).sum(-1)
    second = (q * np.log(q / (0.1 * q + 0.9 * p))).sum(-1)
    theirs, ours = (batch[name].numpy() == 1 for name in ("data_mask", "student_mask"))
    assert not theirs[8:].any()
    assert not ours[:8].any()
    assert float(parts["skew-kl"]) == pytest.approx(first[theirs].mean(), rel=1e-9)
    assert float(parts["reverse-skew-kl"]) == pytest.approx(second[ours].mean(), rel=1e-9)


def test_what_is_kept_of_a_teacher_is_not_read_for_what_the_student_wrote(tmp_path: Path) -> None:
    setup = setup_of(tmp_path, "on", losses=SKEW)

    class Wrong:
        def rows(self, indices: list[int]) -> dict[str, torch.Tensor]:
            raise AssertionError(indices)

    teacher = MACHINE.teacher(setup.job.teacher)
    step = TrainingStep(setup, Teaching(setup.job, teacher, MACHINE, {"train": Wrong()}))
    parts, _ = step(0)
    assert torch.isfinite(parts["skew-kl"])
