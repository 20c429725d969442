"""How long it takes to decompose a student's weights.

bert       the 12 matrices of 2 BERT-base layers, 5 cores, random entries
decaying   the same shapes with singular values that fall by 10^8, as of a matrix that is nearly
           rank-deficient: `tensor.singular_values` resolves them in two rounds
bert-base  all 72 matrices of a 12-layer BERT-base through `opdf.hoist`, with a progress bar

The first two are raced against the classical way, one float64 SVD per bond (tensor-train SVD),
interleaved in random order. Target: a tenth of the time of the paper's public code, which took 34 s
for the 12 matrices on 2 CPU cores, hence 3.4 s by the wall clock; processor time is held to none.

Usage: python benchmarks/decompose.py [--models bert,decaying,bert-base] [--cores N]
           [--device cpu|cuda] [--threads N] [--rounds N | --budget SECONDS] [--json FILE]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from math import prod
from statistics import median
from typing import Any

import numpy as np
import torch
from bench import options as cli
from bench.clock import Clock
from bench.intervals import median_interval, paired
from bench.race import race
from bench.reporting import Report, environment, finite, number, row, span, table
from bench.students import bert
from torch import Tensor

import opdf_compile as opdf
from opdf_compile.parametrizations.matrix_spec import WeightForm
from opdf_compile.parametrizations.mpo_spec import MpoSpec
from opdf_compile.parametrizations.registry import registered
from opdf_compile.tensor.chain import Chain
from opdf_compile.tensor.composition import compose

SCHEMA = "opdf-decompose/1"
TARGET_SECONDS, REFERENCE_SECONDS = 3.4, 34.0
MODELS = ("bert", "decaying", "bert-base", "tiny")
OURS, CLASSICAL = "decompose", "one SVD per bond"
_LAYER = ((768, 768),) * 4 + ((3072, 768), (768, 3072))
_SHAPES = {"bert": _LAYER * 2, "decaying": _LAYER * 2, "tiny": ((24, 16), (16, 24))}
_CORES = 5
_DECADES = 8.0

Weights = list[tuple[Tensor, MpoSpec]]


def weights(model: str, cores: int, device: torch.device, seed: int) -> Weights:
    """The matrices of a model with their specs."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for shape in _SHAPES[model]:
        matrix = torch.randn(shape, generator=generator) * 0.02
        spec = registered("mpo").propose(WeightForm(shape), cores=cores)
        if model == "decaying":
            matrix = decaying(matrix, spec)
        made.append((matrix.to(device), spec))
    return made


def decaying(matrix: Tensor, spec: MpoSpec) -> Tensor:
    """The matrix with the singular values of its arrangement scaled by 1 to 10^-8."""
    cores = [core.double() for core in registered("mpo").decompose(matrix.double(), spec)]
    bonds = [core.shape[-1] for core in cores[:-1]]
    centre = bonds.index(max(bonds))
    scale = torch.logspace(0.0, -_DECADES, bonds[centre], dtype=torch.float64)
    cores[centre] = cores[centre] * scale
    return compose(cores).float()


def one_svd_per_bond(matrix: Tensor, chain: Chain) -> list[Tensor]:
    """The classical way, for comparison: split the cores off one by one, with an SVD each.

    Source: Oseledets, Tensor-Train Decomposition (2011), algorithm 1, without truncation.
    """
    pairs = [axis for k in range(chain.cores) for axis in (k, chain.cores + k)]
    rest = matrix.double().reshape(*chain.out_modes, *chain.in_modes).permute(pairs)
    bonds, cores = chain.bonds, []
    for k, (out, into) in enumerate(zip(chain.out_modes[:-1], chain.in_modes[:-1], strict=True)):
        left, values, right = torch.linalg.svd(
            rest.reshape(bonds[k] * out * into, -1), full_matrices=False
        )
        cores.append(left.reshape(bonds[k], out, into, -1).to(matrix.dtype))
        rest = values[:, None] * right
    last = (bonds[-2], chain.out_modes[-1], chain.in_modes[-1], 1)
    return [*cores, rest.reshape(last).to(matrix.dtype)]


def all_ours(matrices: Weights) -> None:
    """Decompose all of them the product's way."""
    for matrix, spec in matrices:
        registered("mpo").decompose(matrix, spec)


def all_classical(matrices: Weights) -> None:
    """Decompose all of them the classical way."""
    for matrix, spec in matrices:
        one_svd_per_bond(matrix, spec.chain)


def measure(model: str, options: argparse.Namespace, report: Report) -> list[dict[str, Any]]:
    """Race the two ways on one set of matrices."""
    cores = options.cores or _CORES
    matrices = weights(model, cores, options.device, options.seed)
    contenders: dict[str, Callable[[], object]] = {
        OURS: lambda: all_ours(matrices),
        CLASSICAL: lambda: all_classical(matrices),
    }
    all_ours(matrices)  # Warms up the threads of the linear algebra library.
    with report.progress(model) as bar:
        times = race(
            contenders,
            clock=Clock(options.device, options.clock),
            rng=np.random.default_rng(options.seed),
            rounds=options.rounds,
            budget=options.budget,
            progress=bar.callback,
        )
    found = median_interval(paired(times[OURS], times[CLASSICAL]), np.random.default_rng(0))
    common = {
        "cores": cores,
        "matrices": len(matrices),
        "parameters": sum(prod(spec.shape) for _, spec in matrices),
        "rounds": len(times[OURS]),
    }
    target = None if model == "tiny" or options.clock == "cpu" else TARGET_SECONDS
    ours = median(times[OURS])
    return [
        row(
            model,
            OURS,
            ratio=found.ratio,
            low=finite(found.low),
            high=finite(found.high),
            seconds=ours,
            target_seconds=target,
            met=None if target is None else ours <= target,
            **common,
        ),
        row(
            model,
            CLASSICAL,
            ratio=1.0,
            low=1.0,
            high=1.0,
            seconds=median(times[CLASSICAL]),
            **common,
        ),
    ]


def measure_bert_base(options: argparse.Namespace, report: Report) -> list[dict[str, Any]]:
    """Decompose a whole BERT-base as a user would, once."""
    cores = options.cores or _CORES
    torch.manual_seed(options.seed)
    student = bert(12).to(options.device)
    plan = opdf.plan(student, cores=cores)
    with report.progress("bert-base") as bar:
        clock = Clock(options.device, options.clock)
        begin = clock.now()
        opdf.hoist(
            student,
            plan,
            progress=lambda key, done, total: bar.callback(f"{done + 1} of {total}", done / total),
        )
        seconds = clock.now() - begin
    return [
        row(
            "bert-base",
            OURS,
            cores=cores,
            matrices=len(plan.entries),
            parameters=plan.deployed,
            rounds=1,
            seconds=seconds,
        )
    ]


def result_table(rows: Sequence[dict[str, Any]]) -> Any:
    """The rows for people."""
    columns = ("matrices", "cores", "seconds", "ratio", "90 %", "target s", "rounds")
    made = table("Decompose", "model", "way", *columns)
    for r in rows:
        made.add_row(
            r["model"],
            r["form"],
            str(r["matrices"]),
            str(r["cores"]),
            number(r["seconds"], 2),
            number(r["ratio"]),
            span(r["ci_low"], r["ci_high"]),
            number(r.get("target_seconds"), 1),
            str(r["rounds"]),
        )
    return made


def main(words: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    made = cli.parser(
        "decompose.py",
        "Time the decomposition of weights.",
        models=MODELS[:3],
        known=MODELS,
    )
    cli.add_rounds(made, budget=60.0)
    options = cli.parse(made, words)
    report = Report(SCHEMA, options.json)
    before = environment(options.device, vars(options))
    rows: list[dict[str, Any]] = []
    for model in options.models:
        if model == "bert-base":
            rows += measure_bert_base(options, report)
        else:
            rows += measure(model, options, report)
        report.write(before, rows, partial=True, reference_seconds=REFERENCE_SECONDS)
    report.show(result_table(rows))
    report.write(before, rows, reference_seconds=REFERENCE_SECONDS)


if __name__ == "__main__":
    main()
