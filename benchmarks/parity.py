"""Parity of real models on this device: structure, numerics, and latency at each batch.

Each model is expanded, trained for two steps, folded and exported beside its untouched self; then
the two files are compared as `opdf-compile verify` compares them. The export needs no accelerator
and can be done elsewhere: `--export-only` writes the bundles, `--models-dir` takes them.

Several runtimes take turns on each model and batch, so that what the machine does meets them alike.

Usage: python benchmarks/parity.py [--device auto|cpu|cuda] [--runtimes onnxruntime,openvino,..]
           [--models resnet18,bert6,..] [--batches 1,32] [--budget SECONDS] [--jobs N]
           [--models-dir DIR] [--export-only] [--json FILE] [--resume] [--plot FILE.png]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Any

from bench import options as cli
from bench.ledger import Ledger
from bench.machine import machine
from bench.reporting import Report, finite
from exports.cell import on_processor
from exports.jobs import export_all
from exports.models import DEFAULT, MODELS, NAMES
from exports.parity_table import result_table

from opdf_compile.errors import OpdfError
from opdf_compile.parity.latency.measure import measure_latency
from opdf_compile.parity.numerics.checking import check_numerics
from opdf_compile.parity.report.parity_result import overall
from opdf_compile.parity.request import auto_margin
from opdf_compile.parity.runtime.protocol import Device
from opdf_compile.parity.runtime.registry import DEFAULT as DEFAULT_RUNTIME
from opdf_compile.parity.runtime.registry import resolve_device, runtime_names
from opdf_compile.parity.structure.compare import compare_structure

SCHEMA = "opdf-parity/1"
Known = dict[tuple[Path, str], dict[str, Any]]

_FILES = (
    "student.onnx",
    "reference/reference.onnx",
    "student.check.npz",
    "reference/reference.check.npz",
)


def files_judged(folder: Path, device: Device, known: Known) -> dict[str, Any]:
    """Structure and numerics of a bundle, which hold for every batch; `known` remembers them."""
    key = folder, device.runtime.name
    if key in known:
        return known[key]
    student, reference, check, reference_check = (folder / name for name in _FILES)
    structure = compare_structure(student, reference)
    numerics = check_numerics(
        student, check, device, reference=reference, reference_check=reference_check
    )
    figures = ("max_abs_error", "max_rel_error", "noise_floor", "tolerance", "samples")
    values = ("verdict", *figures, "reason")
    known[key] = {
        "structure": {
            "verdict": structure.verdict,
            "nodes": structure.nodes,
            "differences": [str(difference) for difference in structure.differences],
        },
        "numerics": {name: _told(getattr(numerics, name)) for name in values},
    }
    return known[key]


def _told(value: Any) -> Any:
    """A figure as JSON knows it: an output that is not computed has no error."""
    return finite(value) if isinstance(value, float) else value


def row_of(
    name: str,
    batch: int,
    device: Device,
    options: argparse.Namespace,
    known: Known,
    progress: Any,
) -> dict[str, Any]:
    """The row of one model at one batch; what went wrong is a row too."""
    folder = Path(options.models_dir) / name
    row: dict[str, Any] = {"model": name, "batch": batch, "runtime": device.runtime.name}
    try:
        row |= files_judged(folder, device, known)
        latency = measure_latency(
            folder / _FILES[0],
            folder / _FILES[1],
            device,
            margin=auto_margin(device),
            budget=options.budget,
            check=folder / _FILES[2],
            shapes=[MODELS[name].shapes(batch)],
            threads=options.threads,
            progress=progress,
        )
    except OpdfError as error:
        # Where the bundles lay says nothing about the figures.
        return {**row, "verdict": "error", "error": str(error).replace(f"{folder}/", "")}
    verdict = overall(row["structure"]["verdict"], row["numerics"]["verdict"], latency.verdict)
    return {**row, "verdict": verdict, "latency": latency.to_json(), "notes": list(latency.notes)}


def measure(options: argparse.Namespace, folder: Path, report: Report) -> Ledger:
    """Measure what the ledger does not hold yet, strictly one thing at a time."""
    first = options.devices[0]
    environment = machine(first, vars(options)) | {
        "runtimes": {one.runtime.name: one.runtime.version() for one in options.devices}
    }
    ledger = Ledger(SCHEMA, options.json, environment, resume=options.resume)
    known: Known = {}
    ledger.value["margin"] = auto_margin(first)
    ledger.value["rows"] = [row for row in ledger.rows if "latency" in row]
    done = {(row["model"], row["batch"], row["runtime"]) for row in ledger.rows}
    for name, batch, device in product(options.models, options.batches, options.devices):
        if (name, batch, device.runtime.name) in done or not (folder / name).is_dir():
            continue
        with report.progress(f"{name}, batch {batch}, {device.runtime.name}") as bar:
            row = row_of(name, batch, device, options, known, bar.callback)
        ledger.add(row)
        report.show(_line(row))
    return ledger


def _line(row: Mapping[str, Any]) -> str:
    what = f"{row['model']}, batch {row['batch']}, {row['runtime']}: {row['verdict']}"
    if "latency" not in row:
        return f"{what}: {row['error']}"
    return f"{what}, ratio {row['latency']['ratio']:.4f}"


def _options(words: Sequence[str] | None) -> argparse.Namespace:
    made = argparse.ArgumentParser(
        prog="benchmarks/parity.py", description="Compare exports of real models on this device."
    )
    cli.choices(made, "--models", NAMES, DEFAULT)
    cli.numbers(made, "--batches", "samples in a batch", 1, 32)
    cli.seconds(made, "--budget", "seconds for each model and batch", 60.0)
    made.add_argument("--device", default="auto", help="auto, cpu or cuda (default auto)")
    cli.choices(made, "--runtimes", runtime_names(), (DEFAULT_RUNTIME,))
    cli.whole(made, "--threads", "threads of the runtime (default: its own choice)", None)
    cli.whole(made, "--jobs", "processes that export at a time", 1)
    cli.whole(made, "--seed", "of weights and data", 0, least=0)
    made.add_argument("--models-dir", metavar="DIR", help="the bundles; what is there is used")
    made.add_argument(
        "--only-exported", action="store_true", help="pass over what --models-dir does not hold"
    )
    made.add_argument("--export-only", action="store_true", help="write the bundles and end")
    made.add_argument("--json", metavar="FILE", help="write the figures as JSON; - is stdout")
    made.add_argument("--plot", metavar="FILE", help="draw the ratios with their intervals")
    made.add_argument("--resume", action="store_true", help="go on with the rows of --json")
    options = made.parse_args(words)
    if (options.export_only or options.only_exported) and options.models_dir is None:
        cli.fail("--export-only and --only-exported need --models-dir, the folder of the bundles")
    try:
        # Before a minute is spent on exports.
        options.devices = [] if options.export_only else _devices(options)
    except OpdfError as error:
        cli.fail(str(error))
    return options


def _devices(options: argparse.Namespace) -> list[Device]:
    if options.device == "cpu":
        return [on_processor(name) for name in options.runtimes]
    return [resolve_device(options.device, name) for name in options.runtimes]


def _export(options: argparse.Namespace, folder: Path, report: Report) -> bool:
    threads = options.threads or max(1, (os.cpu_count() or 1) // options.jobs)
    with report.progress("export") as bar:

        def exported(text: str, done: float) -> None:
            bar.callback(text, done)
            report.show(text)

        failed = export_all(
            options.models,
            folder,
            jobs=options.jobs,
            threads=threads,
            seed=options.seed,
            progress=exported,
            executorch="executorch" in options.runtimes,
        )
    for name, sentence in failed.items():
        report.show(f"{name} was not exported: {sentence}")
    return not failed


def main(words: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 where a model could not be exported or measured."""
    options = _options(words)
    report = Report(SCHEMA, options.json)
    with ExitStack() as stack:
        folder = Path(options.models_dir or stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        options.models_dir = str(folder)
        exported = options.only_exported or _export(options, folder, report)
        if options.export_only:
            return 0 if exported else 1
        ledger = measure(options, folder, report)
    report.show(result_table(ledger.rows))
    if options.json == "-":
        sys.stdout.write(ledger.text())
    if options.plot:
        from exports.forest import draw

        draw(ledger.value, Path(options.plot))
    return 0 if exported and all("latency" in row for row in ledger.rows) else 1


if __name__ == "__main__":
    sys.exit(main())
