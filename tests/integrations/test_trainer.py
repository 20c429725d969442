"""Hugging Face Trainer steps an Overparam as it steps any optimizer.

The oracle is a loop written out by hand over the batches that the Trainer drew, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import compare
import pytest
import torch
from torch import Tensor, nn

import opdf_compile as opdf

Make = Callable[..., Any]
RATE, DECAY, CLIP, STEPS = 0.05, 0.1, 0.2, 4


def sgd(student: nn.Module, plan: opdf.Plan) -> tuple[Any, dict[str, Any]]:
    made = opdf.overparam_class(student, plan, torch.optim.SGD, momentum=0.9)
    return made, {"lr": RATE}


def inside(trainer: Any) -> opdf.Overparam:
    """The Overparam under Accelerate's wrapper."""
    opt = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    assert isinstance(opt, opdf.Overparam)
    return opt


def decayed_names(student: nn.Module) -> set[str]:
    return {n for n, _ in student.named_parameters() if "bias" not in n and "LayerNorm" not in n}


def test_default_groups_keep_decay_off_biases_and_norms(bert: Make, make_trainer: Make) -> None:
    student = bert()
    plan = opdf.plan(student, cores=3)
    trainer = make_trainer(student, sgd(student, plan), weight_decay=DECAY)
    opt = trainer.create_optimizer()
    assert isinstance(opt, opdf.Overparam) and type(opt).__name__ == "OverparamSGD"
    groups = {group["weight_decay"]: set(group["params"]) for group in opt.group_options()}
    everything = {name for name, _ in student.named_parameters()}
    assert groups == {
        DECAY: decayed_names(student),
        0.0: everything - decayed_names(student),
    }
    assert {entry.key for entry in plan.entries} < groups[DECAY]


@pytest.mark.slow
def test_decay_acts_on_the_decayed_group_alone(bert: Make, make_trainer: Make) -> None:
    runs = {}
    for decay in (0.0, DECAY):
        student = bert()
        plan = opdf.plan(student, cores=3)
        make_trainer(student, sgd(student, plan), max_steps=1, weight_decay=decay).train()
        runs[decay] = compare.weights(student)
    same = {name for name, value in runs[0.0].items() if torch.equal(value, runs[DECAY][name])}
    assert same == set(runs[0.0]) - decayed_names(bert())


def by_hand(
    student: nn.Module,
    plan: opdf.Plan,
    batches: list[dict[str, Tensor]],
    *,
    accumulation: int = 2,
    clip: float = CLIP,
    schedule: bool = True,
) -> None:
    """What the Trainer is asked to do, written out."""
    names = decayed_names(student)
    parameters = dict(student.named_parameters())
    groups = [
        {"params": [p for n, p in parameters.items() if n in names], "weight_decay": DECAY},
        {"params": [p for n, p in parameters.items() if n not in names], "weight_decay": 0.0},
    ]
    opt = opdf.Overparam(groups, torch.optim.SGD, plan=plan, module=student, lr=RATE, momentum=0.9)
    student.train()
    for step in range(STEPS):
        for group in opt.param_groups:
            group["lr"] = RATE * (0.5 * (1 + math.cos(math.pi * step / STEPS)) if schedule else 1)
        opt.zero_grad()
        for batch in batches[step * accumulation : (step + 1) * accumulation]:
            (student(**batch).loss / accumulation).backward()
        nn.utils.clip_grad_norm_(student.parameters(), clip)
        opt.step()


def test_accumulation_clipping_and_schedule_are_those_of_a_loop_by_hand(
    bert: Make, make_trainer: Make, spy: Any
) -> None:
    student = bert().double()
    plan = opdf.plan(student, cores=3)
    trainer = make_trainer(
        student,
        sgd(student, plan),
        gradient_accumulation_steps=2,
        max_grad_norm=CLIP,
        lr_scheduler_type="cosine",
        weight_decay=DECAY,
        max_steps=STEPS,
    )
    trainer.create_optimizer()
    seen = spy(trainer.optimizer)
    trainer.train()
    found = compare.weights(student)

    cosine = [RATE * 0.5 * (1 + math.cos(math.pi * k / STEPS)) for k in range(STEPS)]
    assert seen.rates == pytest.approx(cosine, rel=1e-12)
    # Clipped: to the limit, not to nothing (clip_grad_norm_ divides by the norm plus 1e-6).
    assert seen.norms == pytest.approx([CLIP] * STEPS, rel=1e-5)

    def apart(**changes: Any) -> float:
        other = bert().double()
        by_hand(other, opdf.plan(other, cores=3), trainer.batches, **changes)
        return float(compare.distance(compare.weights(other), found))

    # Not float64's 1e-15: with accumulation, Trainer with a plain SGD is 1e-8 away from such a
    # loop too (it scales the loss by other factors).
    assert apart() < 1e-7
    # Each of the three is seen: without it the weights are far away.
    assert apart(accumulation=1) > 1e-4
    assert apart(clip=1e9) > 1e-4
    assert apart(schedule=False) > 1e-4


def dtypes_of_outputs(student: nn.Module) -> set[torch.dtype]:
    """Filled, during forwards, with the dtypes that the Linear layers give."""
    found: set[torch.dtype] = set()
    for module in student.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda _m, _args, out: found.add(out.dtype))
    return found


def kept_dtypes(trainer: Any) -> set[torch.dtype]:
    """Of the cores and of what the optimizer keeps."""
    state = inside(trainer).state_by_name()
    kept = [v for values in state.values() for v in values.values() if isinstance(v, Tensor)]
    return {value.dtype for value in kept}


@pytest.mark.slow
def test_bf16(bert: Make, make_trainer: Make) -> None:
    runs = {}
    for bf16 in (False, True):
        student = bert()
        plan = opdf.plan(student, cores=3)
        trainer = make_trainer(student, sgd(student, plan), bf16=bf16)
        before, seen = compare.weights(student), dtypes_of_outputs(student)
        trainer.train()
        assert seen == {torch.bfloat16 if bf16 else torch.float32}
        runs[bf16] = compare.weights(student)
        assert compare.distance(runs[bf16], before) > 1e-2
        assert kept_dtypes(trainer) == {torch.float32}
    assert not compare.equal(runs[True], runs[False])
    key = "classifier.weight"
    # bfloat16 rounds each product by 2^-8 at most; four steps stay within a few of those.
    assert (runs[True][key] - runs[False][key]).norm() < 2**-4 * runs[False][key].norm()


def test_fp16_scales_the_loss_and_skips_a_step_that_overflows(
    bert: Make, make_trainer: Make, spy: Any
) -> None:
    """Float16 with loss scaling, as far as a CPU goes.

    On a CPU `fp16=True` means nothing to Accelerate: it neither casts nor scales. So the scaler
    and the autocast that it makes on a GPU are put in its place here, for the CPU; all that follows
    (scaled backward, unscaling, clipping, the skipped step) is the code that a GPU runs.
    """
    student = bert()
    plan = opdf.plan(student, cores=3)
    trainer = make_trainer(student, sgd(student, plan), fp16=True, max_steps=3)
    trainer.accelerator.native_amp = True
    # The first scale overflows float16 (65504) in the backward; each skip takes it to 2^-30 of it.
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, backoff_factor=2.0**-30)
    trainer.accelerator.scaler = scaler
    trainer.create_optimizer()
    opt = trainer.optimizer
    before, seen, outputs = compare.weights(student), spy(opt), dtypes_of_outputs(student)
    after_first: list[dict[str, Tensor]] = []
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def on_step_end(self, *_args: Any, **_named: Any) -> None:
            after_first.append(compare.weights(student))

    trainer.add_callback(Watch())
    trainer.train()
    assert outputs == {torch.float16}
    assert scaler.get_scale() == 2.0**10
    # One of the three steps was skipped: the weights held their bits, and no core was stepped.
    assert compare.equal(after_first[0], before)
    assert len(seen.rates) == 2
    assert compare.distance(after_first[-1], before) > 1e-3
    # Unscaled and clipped gradients, not 1024 times as large.
    assert all(0 < norm < 1.001 for norm in seen.norms)
    # Cores and what the optimizer keeps stay in single precision.
    assert kept_dtypes(trainer) == {torch.float32}
    inside(trainer).program.require_unchanged()


@pytest.mark.gpu
def test_fp16_on_a_gpu(bert: Make, make_trainer: Make) -> None:
    student = bert()
    plan = opdf.plan(student, cores=3)
    before = compare.weights(student)
    trainer = make_trainer(student.cuda(), sgd(student, plan), fp16=True, use_cpu=False)
    seen = dtypes_of_outputs(student)
    trainer.train()
    assert seen == {torch.float16} and trainer.accelerator.scaler is not None
    after = {name: value.cpu() for name, value in compare.weights(student).items()}
    assert compare.distance(after, before) > 1e-2
    inside(trainer).program.require_unchanged()
