"""How often is each verdict of verify right? Pairs of which the answer is known, many times.

Every repetition is a row of the JSON at once, and `--resume` goes on where a run was cut off.
Repetitions go round: first of every pair and size, then the second of each, so that whatever the
machine does meets all pairs alike and a run that is cut off leaves balanced counts.

Usage: python benchmarks/verdicts.py [--device cpu|cuda] [--runtime NAME]
           [--sizes "0.2 ms,5 ms"] [--pairs P,P,..] [--repetitions N] [--budgets 10,20,..]
           [--truth-seconds S] [--threads N] [--json FILE] [--resume] [--folder DIR]
       python benchmarks/verdicts.py --page docs/parity.md   (from the JSON in benchmarks/results)
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from bench import options as cli
from bench.ledger import Ledger
from bench.machine import machine
from bench.reporting import Report, number, span, table
from calibration import lowering
from calibration.pairs import PAIRS, Files, Pair, make, right_latency
from calibration.rates import VERDICTS, counted, grouped, opposite, share
from calibration.students import INPUT, SIZES, Size
from calibration.truth import Truth, measure_truth, search

from opdf_compile.errors import OpdfError
from opdf_compile.parity.latency.measure import measure_latency
from opdf_compile.parity.numerics.checking import check_numerics
from opdf_compile.parity.request import auto_margin
from opdf_compile.parity.runtime.protocol import Device
from opdf_compile.parity.runtime.registry import DEFAULT, resolve_device
from opdf_compile.parity.structure.compare import compare_structure

SCHEMA = "opdf-verdicts/1"
_FIRST_COLUMNS = 16


@dataclass
class Suite:
    """What a run of the suite works with.

    Attributes:
        options: The command line.
        ledger: The JSON.
        folder: Exports and candidates.
        costs: Truths that were measured on the way, by size and columns.
    """

    options: argparse.Namespace
    ledger: Ledger
    folder: Path
    costs: dict[tuple[str, int], Truth] = field(default_factory=dict)

    @property
    def device(self) -> Device:
        """Where the sessions run."""
        device: Device = self.options.device
        return device

    def size(self, label: str) -> Size:
        """The network's size; the batch of a large one is fitted to its label once."""
        kept = self.ledger.value.setdefault("sizes", {})
        if label not in kept:
            size = SIZES["cuda" if self.device.name == "cuda" else "cpu"][label]
            if size.batch > 1:
                size = replace(size, batch=self._fitting_batch(size, float(label.split()[0])))
            kept[label] = asdict(size)
            self.ledger.write()
        return Size(**kept[label])

    def _files(self, pair: Pair, size: Size, repetition: int, columns: int | None) -> Files:
        """The pair on the disk, as its runtime reads it."""
        files = make(pair, size, self.folder, repetition, columns)
        if self.device.runtime.name == lowering.NAME:
            lowering.lower(files.candidate)
            lowering.lower(files.reference)
        return files

    def _fitting_batch(self, size: Size, wanted: float) -> int:
        pair = self._files(PAIRS["identical"], size, 0, None)
        found = self._truth(pair, size, 0.5)
        return max(1, round(size.batch * wanted / found.reference_ms))

    def columns(self, pair: Pair, label: str) -> int | None:
        """Columns of the added product; the truth is measured and kept on the way."""
        if pair.latency is None:
            return None
        kept = self.ledger.value.setdefault("truth", {}).setdefault(label, {})
        if pair.name not in kept:
            kept[pair.name] = self._calibrated(pair, label).to_json()
            self.ledger.write()
        columns: int | None = kept[pair.name]["columns"]
        return columns

    def _calibrated(self, pair: Pair, label: str) -> Truth:
        size, seconds = self.size(label), self.options.truth_seconds
        if pair.slower is None:
            return self._truth(self._files(pair, size, 0, None), size, seconds)

        def measure(columns: int, spend: float) -> Truth:
            known = self.costs.get((label, columns))
            if known is None or known.seconds < 0.8 * spend:
                files = self._files(pair, size, 0, columns)
                self.costs[label, columns] = known = self._truth(files, size, spend)
            return known

        columns, truth = search(measure, pair.slower, _FIRST_COLUMNS, seconds)
        return replace(truth, columns=columns, wanted=1 + pair.slower)

    def _truth(self, files: Files, size: Size, seconds: float) -> Truth:
        rng = np.random.default_rng(self.options.seed)
        inputs = {INPUT: rng.standard_normal(size.shape[INPUT]).astype(np.float32)}
        return measure_truth(
            files.candidate,
            files.reference,
            self.device,
            inputs,
            seconds=seconds,
            threads=self.options.threads,
            rng=rng,
        )

    def row(self, pair: Pair, label: str, budget: float, repetition: int) -> dict[str, Any]:
        """One repetition: the three parts, asked as verify asks them."""
        size = self.size(label)
        files = self._files(pair, size, repetition, self.columns(pair, label))
        began = time.perf_counter()
        numerics = check_numerics(
            files.candidate,
            files.check,
            self.device,
            reference=files.reference,
            reference_check=files.reference_check,
        )
        row = {
            "pair": pair.name,
            "size": label,
            "budget": budget if pair.latency else None,
            "repetition": repetition,
            "structure": compare_structure(files.candidate, files.reference).verdict,
            "numerics": numerics.verdict,
            "latency": None,
        }
        if pair.latency is not None:
            row |= self._latency(files, size, budget)
        return {**row, "seconds": time.perf_counter() - began}

    def _latency(self, files: Files, size: Size, budget: float) -> dict[str, Any]:
        found = measure_latency(
            files.candidate,
            files.reference,
            self.device,
            margin=self.options.margin,
            budget=budget,
            check=files.check,
            shapes=[size.shape],
            threads=self.options.threads,
        )
        value = found.to_json()
        keys = ("ratio", "ci_low", "ci_high", "control", "sessions", "rounds", "reference_ms")
        return {"latency": found.verdict, **{key: value[key] for key in keys}}


def jobs(options: argparse.Namespace) -> list[tuple[int, float, str, Pair]]:
    """Every repetition in the order of the run; a pair without latency knows no budget."""
    return [
        (repetition, budget, label, PAIRS[name])
        for repetition in range(options.repetitions)
        for budget in options.budgets
        for label in options.sizes
        for name in options.pairs
        if PAIRS[name].latency or budget == options.budgets[0]
    ]


def run(suite: Suite, report: Report) -> None:
    """Add the rows that the ledger does not hold yet."""
    done = {_key(row) for row in suite.ledger.rows}
    wanted = jobs(suite.options)
    with report.progress("verdicts") as bar:
        for index, (repetition, budget, label, pair) in enumerate(wanted):
            bar.callback(f"{pair.name}, {label}, repetition {repetition + 1}", index / len(wanted))
            key = (pair.name, label, budget if pair.latency else None, repetition)
            if key not in done:
                suite.ledger.add(suite.row(pair, label, budget, repetition))


def _key(row: Mapping[str, Any]) -> tuple[str, str, float | None, int]:
    return row["pair"], row["size"], row["budget"], row["repetition"]


def result_table(value: Mapping[str, Any]) -> Any:
    """The counts for people."""
    columns = ("n", "structure", "numerics", "true ratio", "right", *VERDICTS, "wrong, 95 %")
    made = table("Verdicts", "pair", "size", "budget", *columns, left=2)
    for (name, label, budget), rows in grouped(value["rows"]).items():
        pair = PAIRS[name]
        truth = value.get("truth", {}).get(label, {}).get(name)
        right = right_latency(pair, truth, value["margin"])
        latency = counted(rows, "latency")
        total = sum(latency.values())
        made.add_row(
            name,
            label,
            "-" if budget is None else f"{budget:g} s",
            str(len(rows)),
            *(_hits(rows, part, getattr(pair, part)) for part in ("structure", "numerics")),
            "-" if truth is None else f"{number(truth['ratio'], 4)} {_bounds(truth)}",
            right or "-",
            *(str(latency[verdict]) if total else "-" for verdict in VERDICTS),
            str(share(latency[opposite(right)], total)) if total and right != "either" else "-",
        )
    return made


def _hits(rows: Sequence[Mapping[str, Any]], part: str, right: str) -> str:
    return f"{counted(rows, part)[right]} {right}"


def _bounds(truth: Mapping[str, Any]) -> str:
    return span(truth["ci_low"], truth["ci_high"])


def _options(words: Sequence[str] | None) -> argparse.Namespace:
    made = argparse.ArgumentParser(
        prog="benchmarks/verdicts.py", description="How often is each verdict of verify right?"
    )
    labels = tuple(SIZES["cpu"])
    cli.choices(made, "--sizes", labels, labels)
    cli.choices(made, "--pairs", tuple(PAIRS), tuple(PAIRS))
    cli.numbers(made, "--budgets", "seconds for each latency", 10)
    cli.whole(made, "--repetitions", "of every pair and size", 100)
    cli.seconds(made, "--truth-seconds", "for the true ratio of a pair", 60.0)
    cli.whole(made, "--threads", "threads of the runtime (default: its own choice)", None)
    cli.whole(made, "--seed", "of the inputs", 0, least=0)
    made.add_argument("--device", default="cpu", help="auto, cpu or cuda (default cpu)")
    made.add_argument("--runtime", default=DEFAULT, help=f"what runs the files (default {DEFAULT})")
    made.add_argument("--json", metavar="FILE", help="every row is written here at once")
    made.add_argument("--resume", action="store_true", help="go on with the rows of --json")
    made.add_argument("--folder", metavar="DIR", help="keep the exports here")
    made.add_argument("--note", help="a sentence for the JSON, such as what else the machine did")
    made.add_argument("--page", metavar="FILE", help="write the page from the results, and end")
    options = made.parse_args(words)
    try:
        options.device = resolve_device(options.device, options.runtime)
    except OpdfError as error:
        cli.fail(str(error))
    options.margin = auto_margin(options.device)
    return options


def main(words: Sequence[str] | None = None) -> None:
    """Run the suite."""
    options = _options(words)
    if options.page:
        from calibration.page import write_page

        write_page(Path(options.page))
        return
    report = Report(SCHEMA, options.json)
    environment = machine(options.device, vars(options))
    with ExitStack() as stack:
        folder = Path(options.folder or stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        ledger = Ledger(SCHEMA, options.json, environment, resume=options.resume)
        ledger.value["margin"] = options.margin
        if options.note:
            ledger.value["note"] = options.note
        run(Suite(options, ledger, folder), report)
    report.show(result_table(ledger.value))
    if options.json == "-":
        sys.stdout.write(ledger.text())


if __name__ == "__main__":
    main()
