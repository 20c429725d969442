"""`python benchmarks/quality/text`: prepare the data, run the study on text, write its rows.

    python benchmarks/quality/text prepare --gensim gensim-4.4.0-*.whl -o lee.npz
    python benchmarks/quality/text run --data lee.npz --device cuda --workers 10 --json text.json

A run that was stopped goes on: every finished training is a line of the .jsonl beside the JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from threading import Lock
from typing import Any

import torch

from quality.text.corpus import Corpus, load
from quality.text.search import Found, Options, search
from quality.text.training import Spec, train

# "frozen" is not run: with the default modes it is "svd" to the bit (a test shows it).
METHODS = ("plain", "mpo", "svd")
TUNING_SEED = 1000
_state: dict[str, Corpus] = {}


def main() -> None:
    """Parse and do."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    first = commands.add_parser("prepare", help="write the one file that `run` reads")
    first.add_argument("--gensim", type=Path, required=True, help="a wheel of gensim 4.4.0")
    first.add_argument("-o", "--output", type=Path, required=True)
    second = commands.add_parser("run", help="search, then the final runs")
    second.add_argument("--data", type=Path, required=True)
    second.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    second.add_argument("--workers", type=int, default=1, help="processes that train side by side")
    second.add_argument("--budget", type=float, default=600.0, help="seconds; then no run starts")
    second.add_argument("--seeds", type=int, default=8, help="final runs of each method")
    second.add_argument("--steps", default="75,300", help="lengths of the short and the long run")
    second.add_argument("--starts", default="warm,random")
    second.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    if options.command == "prepare":
        from quality.text.prepare import prepare

        print(prepare(options.gensim, options.output))
        return
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda, and torch finds no CUDA device; use --device cpu")
    _run(options)


def _run(options: argparse.Namespace) -> None:
    began = time.monotonic()
    ratio = _earlier_ratio(options.json) or _ratio_of_steps(options.data, options.device)
    print(f"step time over plain: {ratio}", flush=True)
    log = Runs(options.json.with_suffix(".jsonl"), began + options.budget)
    context = get_context("spawn")
    start = (str(options.data), options.device)
    cells = [
        (start_, int(steps), method)
        for steps in options.steps.split(",")
        for start_ in options.starts.split(",")
        for method in METHODS
    ]
    with (
        ProcessPoolExecutor(options.workers, context, _open, start) as processes,
        ThreadPoolExecutor(len(cells)) as threads,
    ):
        log.processes = processes
        futures = [threads.submit(_cell, log, c, options.seeds, ratio) for c in cells]
        found = [future.result() for future in futures]
    result = {
        "schema": "opdf-compile/quality-text/1",
        "environment": _environment(options.device),
        "step_time_over_plain": ratio,
        "seconds": time.monotonic() - began,
        "cells": [cell for cell in found if cell is not None],
    }
    options.json.write_text(json.dumps(result, indent=1) + "\n")


class Runs:
    """Trainings in other processes, written down as they end; none begins past the deadline."""

    def __init__(self, path: Path, deadline: float) -> None:
        self.path, self.deadline, self.lock = path, deadline, Lock()
        self.processes: Any = None
        lines = path.read_text().splitlines() if path.exists() else []
        self.known = {
            json.dumps(r["spec"], sort_keys=True): r["found"] for r in map(json.loads, lines)
        }

    def __call__(self, specs: list[Spec]) -> list[dict[str, float]] | None:
        """The endpoints of every run; None if time is over."""
        keys = [json.dumps(spec.row(), sort_keys=True) for spec in specs]
        waiting = {}
        for key, spec in zip(keys, specs, strict=True):
            if key in self.known:
                continue
            if time.monotonic() > self.deadline:
                return None
            waiting[key] = self.processes.submit(_work, spec, self.deadline)
        for key, future in waiting.items():
            found = future.result()
            if found is None:
                return None
            self._keep(key, found)
        return [self.known[key] for key in keys]

    def _keep(self, key: str, found: dict[str, float]) -> None:
        with self.lock, self.path.open("a") as file:
            file.write(json.dumps({"spec": json.loads(key), "found": found}) + "\n")
            self.known[key] = found


class _OverError(Exception):
    """Time is over in the middle of a search."""


def _cell(
    log: Runs, cell: tuple[str, int, str], seeds: int, ratio: dict[str, float]
) -> dict[str, Any] | None:
    """Search one method's options in one setting, then run it on fresh seeds."""
    start, steps, method = cell
    base = Spec(start, steps, method, 0.0, 0.0, 0.9, TUNING_SEED)
    tried: dict[Options, dict[str, float]] = {}

    def attempt(options: list[Options]) -> list[float]:
        found = log([replace(base, **asdict(o)) for o in options])
        if found is None:
            raise _OverError
        tried.update(zip(options, found, strict=True))
        return [f["validation_cosine"] for f in found]

    try:
        best = search(attempt)
    except _OverError:
        return None
    finals = {method: _finals(log, base, best.options, seeds)}
    if method == "plain":
        average = max(tried, key=lambda o: (tried[o]["ema_validation_cosine"], -o.lr))
        finals["plain + ema"] = _finals(log, base, average, seeds)
        longer = replace(base, steps=round(steps * ratio["mpo"]))
        finals["plain, equal wall-clock"] = _finals(log, longer, best.options, seeds)
    untouched = log([replace(base, steps=0, seed=s, method="plain") for s in range(seeds)])
    return {
        "start": start,
        "steps": steps,
        "method": method,
        "search": _searched(best, tried),
        "finals": {k: v for k, v in finals.items() if v is not None},
        "untouched": untouched,
    }


def _finals(log: Runs, base: Spec, options: Options, seeds: int) -> dict[str, Any] | None:
    runs = log([replace(base, **asdict(options), seed=seed) for seed in range(seeds)])
    return None if runs is None else {"options": asdict(options), "steps": base.steps, "runs": runs}


def _searched(best: Found, tried: dict[Options, dict[str, float]]) -> dict[str, Any]:
    rows = [{**asdict(o), "validation_cosine": f["validation_cosine"]} for o, f in tried.items()]
    return {"best": asdict(best.options), "interior": best.interior, "trials": rows}


def _open(data: str, device: str) -> None:
    torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = False
    _state["corpus"] = load(Path(data), device)


def _work(spec: Spec, deadline: float) -> dict[str, float] | None:
    return None if time.monotonic() > deadline else train(_state["corpus"], spec)


def _earlier_ratio(path: Path) -> dict[str, float] | None:
    """What an earlier part of this run measured: its runs of equal wall-clock were cut to it."""
    return dict(json.loads(path.read_text())["step_time_over_plain"]) if path.exists() else None


def _ratio_of_steps(data: Path, device: str) -> dict[str, float]:
    """Seconds of a run of each method over those of a plain one, on the machine still idle."""
    _open(str(data), device)
    specs = {m: Spec("warm", 20, m, 1e-4, 0.0, 0.9, 0) for m in METHODS}
    seconds: dict[str, list[float]] = {m: [] for m in METHODS}
    for _lap in range(4):
        for method, spec in specs.items():
            seconds[method].append(train(_state["corpus"], spec)["seconds"])
    # The first lap warms up; the least of the others is what the machine can do.
    least = {method: min(laps[1:]) for method, laps in seconds.items()}
    return {method: value / least["plain"] for method, value in least.items()}


def _environment(device: str) -> dict[str, str]:
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor()
    return {
        "device": name,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
        "tf32": "off",
    }
