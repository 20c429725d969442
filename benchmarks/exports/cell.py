"""One student in one runtime, in a process of its own: a runtime may end its process.

Prints a line of JSON after each step, so that what was found before such an end is kept:

    loaded   version, precision read back, options that are pinned; or the sentence of a refusal
    batch    the error at that size, or why it did not run; all sizes on one loaded model
    numerics the verdict of `verify` on the file's own check data

The truth is that of the check data, in float64. Its largest sample is cut to each size: rows of a
batch do not know of each other in these students.

Usage: python benchmarks/exports/cell.py RUNTIME BUNDLE 1,3,8
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from opdf_compile.artefacts import Sample, read_check
from opdf_compile.errors import UserError
from opdf_compile.parity.numerics.checking import check_numerics
from opdf_compile.parity.runtime.protocol import Device, LoadedModel, RunFailed
from opdf_compile.parity.runtime.registry import runtime_of

FILE, CHECK = "student.onnx", "student.check.npz"
_NO_NUMBERS = "it answers with another shape, or with numbers that are none"
REFERENCE = ("reference/reference.onnx", "reference/reference.check.npz")


def main(words: Sequence[str]) -> None:
    """Run the cell."""
    runtime, folder, batches = words
    for found in steps(runtime, Path(folder), [int(size) for size in batches.split(",")]):
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()


def steps(name: str, folder: Path, batches: Sequence[int]) -> Iterator[dict[str, Any]]:
    """What is found, step by step."""
    try:
        device = on_processor(name)
        # One thread, so that the order of sums is not the scheduler's.
        model = device.runtime.load(folder / FILE, device, threads=1)
    except UserError as error:
        yield {"step": "loaded", "refused": _named(error, folder)}
        return
    yield {
        "step": "loaded",
        "version": device.runtime.version(),
        "precision": model.precision,
        "options": {"provider": device.provider, **device.provider_options},
    }
    largest = max(read_check(folder / CHECK).samples, key=_rows)
    for size in batches:
        yield {"step": "batch", "size": size, **_error(model, largest, size, folder)}
    yield {"step": "numerics", **_verdict(folder, device)}


def on_processor(name: str) -> Device:
    """A runtime's device that computes on the processor, whatever it calls it."""
    runtime = runtime_of(name)
    return runtime.resolve("cpu" if "cpu" in runtime.devices() else "auto")


def _error(model: LoadedModel, sample: Sample, size: int, folder: Path) -> dict[str, Any]:
    """The largest error over the largest value of its output, over all outputs."""
    inputs = {name: _first(array, size, _rows(sample)) for name, array in sample.inputs.items()}
    try:
        found = model(inputs)
    except RunFailed as failed:
        return {"stopped": failed.reason}
    shares = [_share(found[name], truth[:size]) for name, truth in _truths(sample)]
    # JSON has no NaN: another shape or a number that is none has no error to tell.
    known = [share for share in shares if share is not None]
    return {"error": max(known)} if len(known) == len(shares) else {"stopped": _NO_NUMBERS}


def _share(found: Any, truth: Any) -> float | None:
    if found.shape != truth.shape:
        return None
    error = float(np.abs(found.astype(np.float64) - truth).max() / np.abs(truth).max())
    return error if np.isfinite(error) else None


def _truths(sample: Sample) -> Iterator[tuple[str, Any]]:
    return ((name, np.asarray(truth)) for name, truth in sample.outputs.items())


def _rows(sample: Sample) -> int:
    return min(sample.rows(name) for name in sample.outputs)


def _first(array: Any, size: int, rows: int) -> Any:
    whole = np.asarray(array)
    return whole[:size] if whole.ndim and whole.shape[0] == rows else whole


def _verdict(folder: Path, device: Device) -> dict[str, Any]:
    reference, reference_check = (folder / name for name in REFERENCE)
    try:
        found = check_numerics(
            folder / FILE,
            folder / CHECK,
            device,
            reference=reference,
            reference_check=reference_check,
        )
    except UserError as error:
        return {"verdict": "error", "sentences": [_named(error, folder)]}
    sentences = [found.reason, *found.notes] if found.verdict != "pass" else []
    return {"verdict": found.verdict, "sentences": [text for text in sentences if text]}


def _named(error: UserError, folder: Path) -> str:
    """The sentence, whatever folder the files were in."""
    return str(error).replace(f"{folder.absolute()}/", "").replace(f"{folder}/", "")


def collected(lines: Sequence[str], code: int) -> Mapping[str, Any]:
    """What a cell printed, as one row.

    Args:
        lines: Its standard output.
        code: Its exit code; below 0 the signal that ended it.
    """
    row: dict[str, Any] = {"batches": {}, "verdict": None, "sentences": []}
    found = [json.loads(line) for line in lines if line.startswith("{")]
    for entry in found:
        step = entry.pop("step")
        if step == "batch":
            row["batches"][str(entry.pop("size"))] = entry
        else:
            row |= entry
    if code:
        after = f"after {len(row['batches'])} of the batch sizes" if found else "at load"
        ended = f"signal {-code}" if code < 0 else f"exit code {code}"
        row["ended"] = f"it ends the process with {ended} {after}"
    return row


if __name__ == "__main__":
    main(sys.argv[1:])
