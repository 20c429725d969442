"""Peak memory of an optimizer step: plain, inline, hoisted, batched, hoisted with recompute.

What counts is the peak of the step *beyond* the cores' own values, gradients and optimizer state,
which no implementation can avoid, relative to the peak of the plain step. Targets: 1.10, and 1.05
with recompute.

On a CPU every allocation of torch's allocator is recorded (bench/allocations.py), and the blocks
that hold the cores, their gradients and their state are left out of the sum at each moment. On CUDA
it is torch.cuda.max_memory_allocated, taken for the micro-batches (when cores' gradients do not
exist yet) and for the step apart.

Usage: python benchmarks/memory.py [--models bert,resnet,llama] [--forms ..] [--cores N]
           [--device cpu|cuda] [--threads N] [--json FILE]
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from bench import options as cli
from bench import students
from bench.allocations import addresses, recording
from bench.forms import Form, build, planned
from bench.owners import before_step, grads, owned
from bench.reporting import Report, environment, number, row, table
from torch.profiler import record_function

SCHEMA = "opdf-memory/1"
FORMS = ("plain", "inline", "hoisted", "batched", "recompute")
TARGETS = {"hoisted": 1.10, "batched": 1.10, "recompute": 1.05}
_STEP, _READY = "measured step", "cores' gradients are there"


@dataclass(frozen=True)
class Peak:
    """Bytes of one optimizer step.

    Attributes:
        whole: The most that was live at once.
        beyond: The same without the cores' values, gradients and optimizer state.
        cores: Those values, gradients and state.
    """

    whole: int
    beyond: int
    cores: int


def measure_cpu(make: Callable[[], Form], accumulation: int) -> Peak:
    """Record the making of a form and three steps; the last one is measured."""
    held: set[int] = set()

    def mark(form: Form) -> None:
        with record_function(_READY):
            held.update(addresses(owned(form)))

    with recording() as read:
        form = make()
        before_step(form, mark)
        for _ in range(2):
            form.step(accumulation)
        held.clear()
        with record_function(_STEP):
            form.step(accumulation)
    found = read()
    if form.name == "plain":
        whole = found.peak(_STEP)
        return Peak(whole, whole, 0)
    blocks = found.holding(held, found.moments[_READY][0])
    whole = found.peak(_STEP)
    return Peak(whole, found.peak(_STEP, without=blocks), sum(block.size for block in blocks))


def measure_cuda(make: Callable[[], Form], accumulation: int, device: torch.device) -> Peak:
    """Two phases with a peak each: the cores' gradients exist only in the second."""
    gc.collect()
    torch.cuda.empty_cache()
    others = torch.cuda.memory_allocated(device)
    form = make()
    for _ in range(2):
        form.step(accumulation)
    values = sum(t.untyped_storage().nbytes() for t in owned(form))
    gradients: list[int] = []
    before_step(form, lambda f: gradients.append(sum(g.nbytes for g in grads(f))))
    torch.cuda.reset_peak_memory_stats(device)
    form.micro_batches(accumulation)
    first = torch.cuda.max_memory_allocated(device) - others
    torch.cuda.reset_peak_memory_stats(device)
    form.optimizer.step()
    second = torch.cuda.max_memory_allocated(device) - others
    form.optimizer.zero_grad()
    cores = values + gradients[-1]
    # The inline form has the cores' gradients from the first micro-batch on.
    early = cores if form.name == "inline" else values
    return Peak(max(first, second), max(first - early, second - cores), cores)


def measure(model: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of one model."""
    student = students.student(model, options.device, options.seed)
    traced, plan = planned(student, options.cores)
    cores = max(len(entry.core_names) for entry in plan.entries)
    accumulation = options.accumulation[0]
    rows: list[dict[str, Any]] = []
    plain = 0
    for name in ("plain", *(form for form in options.forms if form != "plain")):
        form = "hoisted" if name == "recompute" else name
        more: dict[str, Any] = {"recompute": True} if name == "recompute" else {}

        def make(form: str = form, more: dict[str, Any] = more) -> Form:
            return build(form, student, traced, plan, **more)

        on_gpu = options.device.type == "cuda"
        found = (
            measure_cuda(make, accumulation, options.device)
            if on_gpu
            else measure_cpu(make, accumulation)
        )
        gc.collect()
        plain = plain or found.whole
        rows.append(_row(model, name, accumulation, cores, found, plain))
    return rows


def _row(
    model: str, name: str, accumulation: int, cores: int, found: Peak, plain: int
) -> dict[str, Any]:
    ratio = found.beyond / plain
    target = TARGETS.get(name)
    return row(
        model,
        name if name != "recompute" else "hoisted",
        accumulation=accumulation,
        cores=cores,
        ratio=ratio,
        # Bytes are counted, not sampled.
        low=ratio,
        high=ratio,
        recompute=name == "recompute",
        peak_bytes=found.whole,
        beyond_bytes=found.beyond,
        cores_bytes=found.cores,
        target=target,
        met=None if target is None else ratio <= target,
    )


def result_table(rows: Sequence[dict[str, Any]]) -> Any:
    """The rows for people."""
    columns = ("A", "cores", "peak MiB", "of the cores", "beyond", "ratio", "target")
    made = table("Peak memory of a step, MiB", "model", "form", *columns)
    for r in rows:
        made.add_row(
            r["model"],
            f"{r['form']}, recompute" if r["recompute"] else r["form"],
            str(r["accumulation"]),
            str(r["cores"]),
            *(number(r[key] / 2**20, 1) for key in ("peak_bytes", "cores_bytes", "beyond_bytes")),
            number(r["ratio"]),
            number(r["target"], 2),
        )
    return made


def main(words: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    made = cli.parser(
        "memory.py",
        "Peak memory of an optimizer step in each form.",
        models=students.DEFAULT,
        known=students.NAMES,
    )
    cli.accumulations(made, 1)
    cli.choices(made, "--forms", FORMS, FORMS)
    options = cli.parse(made, words)
    report = Report(SCHEMA, options.json)
    before = environment(options.device, vars(options))
    rows: list[dict[str, Any]] = []
    for model in options.models:
        rows += measure(model, options)
        report.write(before, rows, partial=True)
    report.show(result_table(rows))
    report.write(before, rows)


if __name__ == "__main__":
    main()
