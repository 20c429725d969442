"""Checkpoints of the Trainer: the best one ships, a resumed run is the uninterrupted one.

And invariant 8: whatever wrote the weights behind the optimizer's back is never overwritten.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import compare
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.errors import WeightsChanged

Make = Callable[..., Any]
SENTENCE = (
    "changed since the last refresh (a checkpoint was loaded, or another optimizer stepped them). "
    "Keep them: absorb(). Keep the cores: fold(program, source='cores')."
)


def adamw(student: nn.Module, **options: Any) -> tuple[Any, dict[str, Any]]:
    made = opdf.overparam_class(student, opdf.plan(student, cores=3), **options)
    return made, {"lr": 1e-2}


def inside(trainer: Any) -> opdf.Overparam:
    """The Overparam under Accelerate's wrapper."""
    opt = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    assert isinstance(opt, opdf.Overparam)
    return opt


def planned(opt: opdf.Overparam) -> int:
    return len(opt.plan.entries)


def refuses(opt: opdf.Overparam | opdf.WeightProgram, count: int) -> None:
    with pytest.raises(WeightsChanged, match=re.escape(f"{count} weights {SENTENCE}")):
        opdf.fold(opt)


def scores(*values: float) -> Callable[[Any], dict[str, float]]:
    """Stands for an evaluation; its results are given."""
    left = list(values)
    return lambda _prediction: {"score": left.pop(0)}


@pytest.fixture
def best_of_three(bert: Make, make_trainer: Make) -> tuple[Any, nn.Module, dict[int, Any]]:
    """A run whose second of three checkpoints is the best; and all three, from their files."""
    student = bert()
    trainer = make_trainer(
        student,
        adamw(student),
        max_steps=6,
        save_strategy="steps",
        eval_strategy="steps",
        save_steps=2,
        eval_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="score",
        greater_is_better=True,
        compute_metrics=scores(0.2, 0.9, 0.1),
    )
    trainer.train()
    folder = Path(trainer.args.output_dir)
    files = {k: load_file(folder / f"checkpoint-{k}" / "model.safetensors") for k in (2, 4, 6)}
    return trainer, student, files


def test_the_best_weights_ship_not_the_last_and_each_checkpoint_is_an_ordinary_model(
    best_of_three: tuple[Any, nn.Module, dict[int, dict[str, Tensor]]],
) -> None:
    trainer, student, files = best_of_three
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-4")
    shipped = compare.weights(student)
    assert compare.equal(shipped, files[4])
    assert not compare.equal(shipped, files[6])
    assert compare.distance(files[6], files[4]) > 1e-3

    # The cores are those of the last step, so folding asks which of the two is wanted.
    opt = inside(trainer)
    refuses(opt, planned(opt))
    keys = [entry.key for entry in opt.plan.entries]
    last = opdf.fold(opt, source="cores").state_dict()
    # Composed in float64, where the step composed in float32: the two differ by rounding.
    assert max(float((last[k] - files[6][k]).norm() / files[6][k].norm()) for k in keys) < 1e-6
    assert compare.equal(opdf.fold(opt, source="weights").state_dict(), files[4])
    assert compare.equal(compare.weights(student), files[4])

    assert opt.absorb() == tuple(keys)
    mended = opdf.fold(opt).state_dict()
    assert max(float((mended[k] - files[4][k]).norm() / files[4][k].norm()) for k in keys) < 1e-6

    folder = Path(trainer.args.output_dir) / "checkpoint-6"
    made: Any = type(student)
    loaded = made.from_pretrained(folder)
    assert list(loaded.state_dict()) == list(student.state_dict())
    assert compare.equal(compare.weights(loaded), files[6])


def resumable(make_trainer: Make, student: nn.Module, folder: Path, **options: Any) -> Any:
    return make_trainer(
        student,
        adamw(student),
        output_dir=str(folder),
        max_steps=6,
        save_strategy="steps",
        save_steps=3,
        gradient_accumulation_steps=2,
        lr_scheduler_type="cosine",
        weight_decay=0.1,
        **options,
    )


def test_resume_is_bit_equal_to_the_uninterrupted_run(
    bert: Make, make_trainer: Make, tmp_path: Path
) -> None:
    whole = bert(dropout=0.1)
    through = resumable(make_trainer, whole, tmp_path / "whole")
    through.train()
    checkpoint = tmp_path / "whole" / "checkpoint-3"
    assert not compare.equal(compare.weights(whole), load_file(checkpoint / "model.safetensors"))

    # Another start, so that everything must come out of the checkpoint.
    student = bert(seed=7, dropout=0.1)
    resumed = resumable(make_trainer, student, tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert compare.equal(compare.weights(student), compare.weights(whole))
    state, wanted = inside(resumed).state_dict(), inside(through).state_dict()
    assert compare.equal(state, wanted)
    matched = inside(through).plan.entries[0].key
    kept = inside(through).state_by_name()[matched]
    assert {"cores.0", "cores.0.exp_avg", "cores.2.exp_avg_sq", "cores.2.step"} <= set(kept)
    assert float(kept["cores.0.step"]) == 6


@pytest.mark.slow
def test_the_weights_alone_do_not_make_that_run(
    bert: Make, make_trainer: Make, tmp_path: Path
) -> None:
    """The moments and the random numbers are missing."""
    whole, fresh = bert(dropout=0.1), bert(seed=7, dropout=0.1)
    resumable(make_trainer, whole, tmp_path / "whole").train()
    fresh.load_state_dict(load_file(tmp_path / "whole" / "checkpoint-3" / "model.safetensors"))
    resumable(make_trainer, fresh, tmp_path / "fresh").train()
    assert not compare.equal(compare.weights(fresh), compare.weights(whole))


def test_resume_without_the_optimizer_s_file(
    bert: Make, make_trainer: Make, tmp_path: Path
) -> None:
    whole = bert()
    resumable(make_trainer, whole, tmp_path / "whole").train()
    checkpoint = shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "checkpoint-3")
    (checkpoint / "optimizer.pt").unlink()
    trainer = resumable(make_trainer, bert(seed=7), tmp_path / "refused")
    # Trainer loads the weights of the checkpoint, and leaves the optimizer as it was made.
    trainer.create_optimizer()
    with pytest.raises(WeightsChanged, match=re.escape(SENTENCE)):
        trainer.train(resume_from_checkpoint=str(checkpoint))
    student = bert(seed=7)
    trainer = resumable(make_trainer, student, tmp_path / "resumed")
    # Made after the weights were loaded, it starts from them, with moments of its own.
    trainer.train(resume_from_checkpoint=str(checkpoint))
    opt = inside(trainer)
    opt.program.require_unchanged()
    assert float(opt.state_by_name()[opt.plan.entries[0].key]["cores.0.step"]) == 3
    start = load_file(checkpoint / "model.safetensors")
    after = compare.weights(student)
    assert 0 < compare.distance(after, start) < compare.distance(bert(7).state_dict(), start)
    assert not compare.equal(after, compare.weights(whole))


@pytest.mark.slow
def test_an_optimizer_s_file_of_a_plain_run_is_refused(
    bert: Make, make_trainer: Make, tmp_path: Path
) -> None:
    plain = bert()
    options = {"save_strategy": "steps", "save_steps": 2, "output_dir": str(tmp_path / "plain")}
    make_trainer(plain, None, **options).train()
    student = bert()
    trainer = resumable(make_trainer, student, tmp_path / "resumed")
    with pytest.raises(opdf.UserError, match="holds no cores, it is that of a plain optimizer"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "plain" / "checkpoint-2"))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["optimizer", "program"])
def test_forgetting_to_pass_the_optimizer(form: str, bert: Make, make_trainer: Make) -> None:
    student = bert()
    plan = opdf.plan(student, cores=3)
    made: Any = (
        opdf.Overparam(student, plan=plan, lr=1e-2)
        if form == "optimizer"
        else opdf.hoist(student, plan)
    )
    start = compare.weights(student)
    make_trainer(student, None).train()  # Trainer makes an AdamW of its own.
    trained = compare.weights(student)
    keys = [entry.key for entry in plan.entries]
    assert all(not torch.equal(trained[key], start[key]) for key in keys)

    refuses(made, len(keys))
    # The refusal has changed nothing, and both ways out lead where they say.
    assert compare.equal(compare.weights(student), trained)
    cores = opdf.fold(made, source="cores").state_dict()
    assert max(float((cores[k] - start[k]).norm() / start[k].norm()) for k in keys) < 1e-6
    assert made.absorb() == tuple(keys)
    absorbed = opdf.fold(made).state_dict()
    assert compare.distance({k: absorbed[k] for k in keys}, {k: trained[k] for k in keys}) < 1e-6


def test_loading_a_checkpoint_behind_its_back(
    bert: Make, make_trainer: Make, sentences: list[dict[str, Tensor]]
) -> None:
    student = bert()
    trainer = make_trainer(student, adamw(student))
    trainer.train()
    opt, other = inside(trainer), compare.weights(bert(seed=9))
    student.load_state_dict(other)
    batch = {key: torch.stack([row[key] for row in sentences[:4]]) for key in sentences[0]}
    student(**batch).loss.backward()
    with pytest.raises(WeightsChanged, match=re.escape(f"{planned(opt)} weights {SENTENCE}")):
        opt.step()
    refuses(opt, planned(opt))
    assert compare.equal(compare.weights(student), other)

    opt.absorb()
    opt.step()
    opt.program.require_unchanged()
    moved = compare.weights(student)
    # It went on from the weights that were loaded: one step of AdamW away, not a training run.
    assert 0 < compare.distance(moved, other) < compare.distance(other, compare.weights(bert()))
