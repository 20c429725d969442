"""Time of trace, match, plan and expand against the number of layers, without the SVDs.

mlp          125, 250, 500, 1000 Linear layers of width 16, ReLU in between, one flat Sequential
transformer  6, 12, 24, 48 layers of BERT, hidden 64
bert-base    12 layers of BERT-base; its ratio to the two torch.export calls has a target, 1.25

Slopes are fitted to processor time, which a busy machine changes little. `export` and `unlift` are
torch's own work inside trace (see bench/stages.py, where it also says how the decomposition is left
out). The ratio is (all stages) / export.

Usage: python benchmarks/graph_scale.py [--models mlp,transformer,bert-base] [--rounds N]
           [--json FILE] [--plot FILE.png]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from bench import options as cli
from bench.growth import exponent, plot
from bench.reporting import Report, environment, number, row, table
from bench.stages import OWN, STAGES, Times, measure
from torch import nn

SCHEMA = "opdf-graph-scale/1"
LAYERS = {
    "mlp": (125, 250, 500, 1000),
    "transformer": (6, 12, 24, 48),
    "bert-base": (12,),
    "tiny": (2, 4, 8),
}
TARGET = 1.25
TARGET_OF = "bert-base"
_Student = tuple[nn.Module, tuple[torch.Tensor, ...], dict[str, torch.Tensor]]


def student(name: str, layers: int) -> _Student:
    """A model of so many layers, with its example inputs."""
    if name in ("mlp", "tiny"):
        parts = [part for _ in range(layers) for part in (nn.Linear(16, 16), nn.ReLU())]
        return nn.Sequential(*parts), (torch.randn(4, 16),), {}
    from bench.students import bert_of

    wide = name == "bert-base"
    ids = torch.randint(0, 100, (2, 16))
    return bert_of(layers, hidden=768 if wide else 64), (), {"input_ids": ids}


def best(name: str, layers: int, options: argparse.Namespace) -> Times:
    """The least of several rounds, stage by stage: noise only adds."""
    model, args, kwargs = student(name, layers)
    rounds = [measure(model, args, kwargs, options.cores or 3) for _ in range(options.rounds or 2)]
    for clock in ("cpu", "wall"):
        for stage in STAGES:
            getattr(rounds[0], clock)[stage] = min(getattr(r, clock)[stage] for r in rounds)
    return rounds[0]


def measured(name: str, layers: int, times: Times, options: argparse.Namespace) -> dict[str, Any]:
    """One row of the report."""
    ratio = sum(times.cpu.values()) / times.cpu["export"]
    target = TARGET if name == TARGET_OF else None
    return row(
        name,
        f"{layers} layers",
        cores=options.cores or 3,
        ratio=ratio,
        layers=layers,
        nodes=times.nodes,
        weights=times.weights,
        cpu_seconds=times.cpu,
        wall_seconds=times.wall,
        target_ratio=target,
        met=None if target is None else ratio <= target,
    )


def slopes(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The exponent of each stage, and of "own", the sum of ours, by model of several sizes."""
    found: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(r["model"] for r in rows):
        sizes, stages = curve(rows, name)
        if len(sizes) > 1:
            stages["own"] = [sum(parts) for parts in zip(*(stages[s] for s in OWN), strict=True)]
            found[name] = {stage: exponent(sizes, times) for stage, times in stages.items()}
    return found


def curve(rows: Sequence[dict[str, Any]], name: str) -> tuple[list[int], dict[str, list[float]]]:
    """Layers, and processor seconds by stage."""
    mine = [r for r in rows if r["model"] == name]
    # A stage below the clock's resolution counts as that.
    seconds = {s: [max(r["cpu_seconds"][s], 1e-6) for r in mine] for s in STAGES}
    return [r["layers"] for r in mine], seconds


def result_table(rows: Sequence[dict[str, Any]], exponents: dict[str, dict[str, float]]) -> Any:
    """The rows for people, each model's slopes below its own."""
    columns = ("weights", "nodes", *STAGES, "all / export")
    made = table("Processor seconds by stage, without the SVDs", "model", "layers", *columns)
    for name in dict.fromkeys(r["model"] for r in rows):
        for r in (r for r in rows if r["model"] == name):
            cells = [number(r["cpu_seconds"][stage]) for stage in STAGES]
            counts = (str(r["weights"]), str(r["nodes"]))
            made.add_row(name, str(r["layers"]), *counts, *cells, number(r["ratio"], 2))
        if name in exponents:
            cells = [number(exponents[name][stage], 2) for stage in STAGES]
            made.add_row(name, "slope", "", "", *cells, "")
    return made


def main(words: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    made = cli.parser(
        "graph_scale.py",
        "Time the graph passes against the number of layers.",
        models=("mlp", "transformer", "bert-base"),
        known=tuple(LAYERS),
    )
    made.add_argument("--rounds", type=int, help="rounds; the least of each stage counts (2)")
    made.add_argument("--plot", type=Path, metavar="FILE.png", help="draw layers against seconds")
    options = cli.parse(made, words)
    report = Report(SCHEMA, options.json)
    asked = {key: value for key, value in vars(options).items() if key != "plot"}
    before = environment(options.device, asked)
    rows: list[dict[str, Any]] = []
    measure(*student("tiny", 2), 3)  # Imports, and the compose subgraph that all sizes share.
    for name in options.models:
        with report.progress(name) as bar:
            for place, layers in enumerate(LAYERS[name]):
                bar.callback(f"{layers} layers", place / len(LAYERS[name]))
                rows.append(measured(name, layers, best(name, layers, options), options))
                report.write(before, rows, partial=True)
    found = slopes(rows)
    report.show(result_table(rows, found))
    for r in rows:
        if r["met"] is not None:
            report.show(f"{r['model']}: {r['ratio']:.2f} times torch.export, target {TARGET}")
    report.write(before, rows, slopes=found)
    if options.plot is not None and found:
        curves = {name: (*curve(rows, name), found[name]) for name in found}
        plot(curves, options.plot, size="layers", seconds="processor seconds", others=2)


if __name__ == "__main__":
    main()
