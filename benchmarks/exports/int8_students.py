"""Students that train alike but for their parametrization, and what int8 takes from them.

    student   a stack of study 2, nine convolutions with BatchNorm and ReLU on handwritten digits
    methods   as study 2 names and starts them, all from the same weights and orders of the data

Files are quantised by the function of `export --dtype int8` and `advise --after int8`, and scored
as the latter does it: by what their numbers mean on any processor.
"""

from __future__ import annotations

import functools
import math
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from quality import sources
from quality.fleet import schedule
from quality.second.methods import BY_NAME
from quality.second.problem import Part, Problem
from quality.second.search import Trial
from quality.second.students import WIDTH, Stack, maker
from quality.second.training import batches, begun
from torch import nn

import opdf_compile as opdf
from opdf_compile.errors import InputError
from opdf_compile.io import build_export, quantise
from opdf_compile.parity import ArraySession, resolve_device

MODELS = ("deep", "deep-skip")
METHODS = ("plain", "mpo", "gains", "repvgg")
# Both on the grid of study 2: the rate at which its search begins, with rate x decay x steps = 1; a
# sixth of the rate and no decay.
REGIMES = {"hard": Trial("sgd", 0, 3), "gentle": Trial("sgd", -3, 0)}
# Cores diverge on these students at higher rates.
_MOST_RATE = {"mpo": -3}
# One scale for each output channel of a weight, or one for the weight.
SCALES = {"channel": True, "tensor": False}
TRAINING, CALIBRATION, BATCH = 797, 512, 64
_ORDER_SEED = 8


@functools.cache
def problem(model: str, steps: int) -> Problem:
    """The digits for a student: 797 images to train on, 1,000 to test."""
    found = sources.digits()
    order = np.random.default_rng(_ORDER_SEED).permutation(len(found.labels))
    images = found.inputs.reshape(-1, 1, 8, 8)[order]
    first = images[:TRAINING]
    inputs = torch.from_numpy((images - first.mean()) / first.std())
    labels = torch.from_numpy(found.labels[order])
    nobody = torch.empty(0)  # Nothing is distilled.
    parts = {
        "train": Part(inputs[:TRAINING], labels[:TRAINING], nobody),
        "test": Part(inputs[TRAINING:], labels[TRAINING:], nobody),
    }
    return Problem("digits", model, steps, parts, maker(model, 2, 1, 10, WIDTH))


def trial_of(method: str, regime: str) -> Trial:
    """The rate and the decay of a method's runs."""
    trial = REGIMES[regime]
    return replace(trial, rate=min(trial.rate, _MOST_RATE.get(method, trial.rate)))


def trained(task: Problem, method: str, regime: str, seed: int) -> Stack:
    """A student, trained and folded, in eval mode.

    Raises:
        InputError: The training diverged.
    """
    asked, trial = BY_NAME[method], trial_of(method, regime)
    model, optimizer = begun(task, asked, trial, task.steps, seed)
    peak, orders = trial.learning_rate(asked.centres), batches(task.count, seed)
    model.train()
    for step in range(task.steps):
        for group in optimizer.param_groups:
            group["lr"] = peak * schedule(step, task.steps)
        loss = task.loss(model, next(orders), "labels")
        if not math.isfinite(loss.item()):
            raise InputError(
                f"{task.student} with {method}, {regime}, seed {seed} diverged at step {step}; "
                "leave the method or the regime out"
            )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    student = opdf.fold(model) if asked.branches else model
    return cast(Stack, student.eval())


def measured(task: Problem, student: nn.Module) -> dict[str, Any]:
    """Test accuracy in float32 and in int8, by the scales of the weights."""
    with tempfile.TemporaryDirectory() as folder:
        files = written(task, student, Path(folder))
        scores = {name: _accuracy(task, file) for name, file in files.items()}
    return {"float32": scores.pop("float32"), "int8": scores}


def written(task: Problem, student: nn.Module, folder: Path) -> dict[str, Path]:
    """The student's file in float32, and one in int8 for each kind of scales."""
    model = build_export(student, (task.parts["train"].inputs[:BATCH],)).model
    proto = model if isinstance(model, onnx.ModelProto) else ir.serde.serialize_model(model)
    files = {name: folder / f"{name}.onnx" for name in ("float32", *SCALES)}
    onnx.save(proto, files["float32"])
    for name, per_channel in SCALES.items():
        feeds = calibration(task, proto.graph.input[0].name)
        quantise(proto, feeds, files[name], per_channel=per_channel)
    return files


def calibration(task: Problem, name: str) -> Iterator[dict[str, NDArray[np.float32]]]:
    """The first training images, in batches."""
    for rows in torch.split(task.parts["train"].inputs[:CALIBRATION], BATCH):
        yield {name: rows.numpy()}


@torch.no_grad()
def reach(student: Stack) -> float:
    """The largest |w| over the RMS of a weight that runs, norms merged; of the layers the largest.

    With one scale the step is max |w| / 127, so that rounding adds reach / 440 of the RMS.
    """
    found = []
    for conv, norm in zip(student.convs, student.norms, strict=True):
        tensors = {**norm.state_dict(), "kernel": conv.state_dict()["weight"]}
        gain = tensors["weight"] / (tensors["running_var"] + norm.eps).sqrt()
        weight = tensors["kernel"] * gain.view(-1, 1, 1, 1)
        found.append(float(weight.abs().max() / weight.square().mean().sqrt()))
    return max(found)


def _accuracy(task: Problem, file: Path) -> float:
    part = task.parts["test"]
    runner = ArraySession(file, resolve_device("cpu"), unsaturated=True)
    found = runner({runner.input_names[0]: part.inputs.numpy()})[runner.output_names[0]]
    return float((found.argmax(1) == part.labels.numpy()).mean())
