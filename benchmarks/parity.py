"""Parity of real models on this device: structure, numerics, and latency at each batch.

Each model is expanded, trained for two steps, folded and exported beside its untouched self; then
the two files are compared as `opdf-compile verify` compares them. The export needs no accelerator
and can be done elsewhere: `--export-only` writes the bundles, `--models-dir` takes them.

Usage: python benchmarks/parity.py [--device auto|cpu|cuda] [--models resnet18,bert6,..]
           [--batches 1,32] [--budget SECONDS] [--jobs N] [--models-dir DIR] [--export-only]
           [--json FILE] [--resume] [--plot FILE.png]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench import options as cli
from bench.ledger import Ledger
from bench.machine import machine
from bench.reporting import Report, number, span, table
from exports.jobs import export_all
from exports.models import DEFAULT, MODELS, NAMES

from opdf_compile.errors import OpdfError
from opdf_compile.parity.latency.measure import measure_latency
from opdf_compile.parity.numerics.checking import check_numerics
from opdf_compile.parity.report.parity_result import overall
from opdf_compile.parity.request import AUTO_MARGIN
from opdf_compile.parity.runtime.protocol import Device
from opdf_compile.parity.runtime.registry import resolve_device
from opdf_compile.parity.structure.compare import compare_structure

SCHEMA = "opdf-parity/1"
_SIDES = ("reference", "candidate")
_PARTS = ("structure", "numerics", "latency")
_MARKS = {"pass": "+", "fail": "x", "inconclusive": "?", "not_checked": "-"}
_FILES = (
    "student.onnx",
    "reference/reference.onnx",
    "student.check.npz",
    "reference/reference.check.npz",
)


def files_judged(folder: Path, device: Device, known: dict[Path, dict[str, Any]]) -> dict[str, Any]:
    """Structure and numerics of a bundle, which hold for every batch; `known` remembers them."""
    if folder in known:
        return known[folder]
    student, reference, check, reference_check = (folder / name for name in _FILES)
    structure = compare_structure(student, reference)
    numerics = check_numerics(
        student, check, device, reference=reference, reference_check=reference_check
    )
    values = ("verdict", "max_abs_error", "max_rel_error", "noise_floor", "tolerance", "samples")
    known[folder] = {
        "structure": {
            "verdict": structure.verdict,
            "nodes": structure.nodes,
            "differences": [str(difference) for difference in structure.differences],
        },
        "numerics": {name: getattr(numerics, name) for name in values},
    }
    return known[folder]


def row_of(
    name: str,
    batch: int,
    options: argparse.Namespace,
    folder: Path,
    known: dict[Path, dict[str, Any]],
    progress: Any,
) -> dict[str, Any]:
    """The row of one model at one batch; what went wrong is a row too."""
    device = options.device
    row: dict[str, Any] = {"model": name, "batch": batch}
    try:
        row |= files_judged(folder, device, known)
        latency = measure_latency(
            folder / _FILES[0],
            folder / _FILES[1],
            device,
            margin=AUTO_MARGIN[device.name],
            budget=options.budget,
            check=folder / _FILES[2],
            shapes=[MODELS[name].shapes(batch)],
            threads=options.threads,
            progress=progress,
        )
    except OpdfError as error:
        return {**row, "verdict": "error", "error": str(error)}
    verdict = overall(row["structure"]["verdict"], row["numerics"]["verdict"], latency.verdict)
    return {**row, "verdict": verdict, "latency": latency.to_json(), "notes": list(latency.notes)}


def result_table(rows: Sequence[Mapping[str, Any]]) -> Any:
    """The rows for people; two figures in a cell are the reference's and the candidate's."""
    columns = ("ratio", "90 %", "control", "ms", "MiB", "cold ms", "error", "allowed")
    made = table("Candidate / reference", "model", "batch", "S N L", "verdict", *columns, left=4)
    for row in rows:
        if "latency" not in row:
            made.add_row(row["model"], str(row["batch"]), "", "error", *("-",) * len(columns))
            continue
        found, numerics = row["latency"], row["numerics"]
        made.add_row(
            row["model"],
            str(row["batch"]),
            " ".join(_MARKS[row[part]["verdict"]] for part in _PARTS),
            row["verdict"],
            number(found["ratio"], 4),
            span(found["ci_low"], found["ci_high"]),
            span(found["control"]["ci_low"], found["control"]["ci_high"]),
            _two(found["reference_ms"], found["candidate_ms"], 3),
            _two(*_both(found["memory"], 2**20), 0),
            _two(*_both(found["cold_start_ms"], 1), 0),
            *(_small(numerics[key]) for key in ("max_abs_error", "tolerance")),
        )
    return made


def _two(reference: float | None, candidate: float | None, digits: int) -> str:
    return f"{number(reference, digits)} {number(candidate, digits)}"


def _small(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


def _both(found: Mapping[str, float | None], unit: int) -> tuple[float | None, float | None]:
    """The reference's and the candidate's figure in a unit."""
    reference, candidate = (found[side] for side in _SIDES)
    return _in(reference, unit), _in(candidate, unit)


def _in(value: float | None, unit: int) -> float | None:
    return None if value is None else value / unit


def measure(options: argparse.Namespace, folder: Path, report: Report) -> Ledger:
    """Measure what the ledger does not hold yet, strictly one thing at a time."""
    device = options.device
    ledger = Ledger(SCHEMA, options.json, machine(device, vars(options)), resume=options.resume)
    known: dict[Path, dict[str, Any]] = {}
    ledger.value["margin"] = AUTO_MARGIN[device.name]
    done = {(row["model"], row["batch"]) for row in ledger.rows if "latency" in row}
    ledger.value["rows"] = [row for row in ledger.rows if "latency" in row]
    for name in options.models:
        for batch in options.batches:
            if (name, batch) in done or not (folder / name).is_dir():
                continue
            with report.progress(f"{name}, batch {batch}") as bar:
                row = row_of(name, batch, options, folder / name, known, bar.callback)
            ledger.add(row)
            report.show(_line(row))
    return ledger


def _line(row: Mapping[str, Any]) -> str:
    what = f"{row['model']}, batch {row['batch']}: {row['verdict']}"
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
        options.device = None if options.export_only else resolve_device(options.device)
    except OpdfError as error:
        cli.fail(str(error))
    return options


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
