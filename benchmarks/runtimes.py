"""Every student in every runtime that is installed: numerics alone, batches on one loaded file.

The students are trained for a moment, folded and exported as parity.py does it. Each cell runs in a
process of its own. What takes part is what the registry of runtimes knows and this machine has.

Usage: python benchmarks/runtimes.py [--models M,M] [--batches 1,3,8] [--models-dir DIR]
           [--only RUNTIME,RUNTIME] [--json FILE]
       python benchmarks/runtimes.py --page docs/runtimes.md   (from the JSON in benchmarks/results)
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench import options as cli
from bench.ledger import Ledger
from bench.machine import machine
from bench.reporting import Report, table
from exports.cell import collected
from exports.jobs import export_all
from exports.models import MODELS, TRIED
from exports.runtimes_page import batch_words, write_page

from opdf_compile.parity.runtime.registry import resolve_device, runtime_names, runtime_of

SCHEMA = "opdf-runtimes/1"
_CELL = Path(__file__).parent / "exports" / "cell.py"
# What decides in which precision runtimes compute when they are left alone.
_UNITS = ("avx2", "avx512f", "avx512_fp16", "avx512_bf16", "amx_bf16", "f16c", "fma")


def installed(names: Sequence[str]) -> list[str]:
    """The runtimes that run on this machine's processor."""
    return [name for name in names if runtime_of(name).missing("cpu") is None]


def cell(runtime: str, model: str, folder: Path, batches: Sequence[int]) -> dict[str, Any]:
    """One row."""
    sizes = ",".join(map(str, batches))
    words = [sys.executable, str(_CELL), runtime, str(folder / model), sizes]
    done = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False)
    return {
        "model": model,
        "runtime": runtime,
        **collected(done.stdout.splitlines(), done.returncode),
    }


def units() -> list[str]:
    """The processor's units of reduced precision and wide vectors, where the system tells them."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return []
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "").split()
    return [unit for unit in _UNITS if unit in flags]


def measure(options: argparse.Namespace, folder: Path, report: Report) -> Ledger:
    """Every cell, one after the other."""
    environment = machine(resolve_device("cpu"), vars(options)) | {"units": units()}
    ledger = Ledger(SCHEMA, options.json, environment, resume=False)
    ledger.value["batches"] = list(options.batches)
    names = installed(options.only)
    cells = [(name, model) for name in names for model in options.models]
    with report.progress("runtimes") as bar:
        for place, (name, model) in enumerate(cells):
            bar.callback(f"{model} in {name}", place / len(cells))
            ledger.add(cell(name, model, folder, options.batches))
    return ledger


def result_table(rows: Sequence[Mapping[str, Any]]) -> Any:
    """The rows for people."""
    made = table("Students in runtimes", "runtime", "model", "batches", "numerics", left=4)
    for row in rows:
        made.add_row(row["runtime"], row["model"], batch_words(row), str(row["verdict"] or "-"))
    return made


def _options(words: Sequence[str] | None) -> argparse.Namespace:
    made = argparse.ArgumentParser(
        prog="benchmarks/runtimes.py", description="Exported students in every runtime."
    )
    cli.choices(made, "--models", tuple(MODELS), TRIED)
    cli.choices(made, "--only", runtime_names(), runtime_names())
    cli.numbers(made, "--batches", "samples in a batch", 1, 3, 8)
    cli.whole(made, "--seed", "of weights and data", 0, least=0)
    made.add_argument("--models-dir", metavar="DIR", help="the bundles; what is there is used")
    made.add_argument("--json", metavar="FILE", help="write the figures as JSON; - is stdout")
    made.add_argument("--page", metavar="FILE", help="write the tables from the results, and end")
    return made.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 where a student could not be exported."""
    options = _options(words)
    if options.page:
        write_page(Path(options.page))
        return 0
    report = Report(SCHEMA, options.json)
    with ExitStack() as stack:
        folder = Path(options.models_dir or stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        with report.progress("export") as bar:
            failed = export_all(
                options.models,
                folder,
                jobs=1,
                threads=1,
                seed=options.seed,
                progress=bar.callback,
                executorch="executorch" in installed(options.only),
            )
        for name, sentence in failed.items():
            report.show(f"{name} was not exported: {sentence}")
        options.models = tuple(name for name in options.models if name not in failed)
        ledger = measure(options, folder, report)
    report.show(result_table(ledger.rows))
    if options.json == "-":
        sys.stdout.write(ledger.text())
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
