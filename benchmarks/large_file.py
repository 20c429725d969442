"""Time, memory and bytes read of `verify` on a student with gigabytes of external data.

The student is a stack of square Linear layers, exported beside one with other weights. Every
command is a process of its own: the peak is its largest resident size, which counts pages of
files that it maps; `read` is what it asked of the system by reading (Linux), which maps are not.

Usage: python benchmarks/large_file.py [--gigabytes 2.1] [--width 4096] [--bundle DIR]
           [--only structure,numerics] [--json FILE]
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from bench import options as cli
from bench.process import once
from bench.reporting import Report, environment, number, table
from torch import nn

import opdf_compile as opdf

SCHEMA = "opdf-large-file/1"
ROOT = Path(__file__).parents[1]
# The peak may be so much of the student's files.
TARGET = 1.5
_ROWS = 2
_PARTS = ("structure", "numerics", "structure,numerics")


def bundle(folder: Path, gigabytes: float, width: int) -> None:
    """Export a student of so many bytes, and its reference, unless the folder holds them."""
    if (folder / "manifest.json").exists():
        return
    layers = max(1, round(gigabytes * 1e9 / (4 * width * (width + 1))))
    example = (torch.randn(_ROWS, width),)
    student, reference = (_stack(layers, width, seed) for seed in (0, 1))
    opdf.export_onnx(student, example, folder, reference=reference)


def _stack(layers: int, width: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(layers))).eval()


def files_of(folder: Path) -> int:
    """Bytes of the student's files."""
    return sum(one.stat().st_size for one in folder.glob("student.onnx*"))


def measured(folder: Path, parts: str) -> dict[str, Any]:
    """One run of `verify` in a process of its own."""
    words = ("verify", str(folder.resolve()), "--only", parts, "--device", "cpu")
    cost = once(ROOT, words)
    return {"parts": parts, **asdict(cost)}


def result_table(rows: Sequence[dict[str, Any]], size: int) -> Any:
    """The rows for people, in shares of the student's files."""
    made = table(f"verify of {size / 1e9:.2f} GB", "parts", "s", "cpu s", "peak", "read", left=1)
    for row in rows:
        seconds = (number(row[key]) for key in ("wall", "cpu"))
        shares = (
            "-" if row[key] is None else f"{row[key] * 2**20 / size:.2f} x the file"
            for key in ("mib", "read")
        )
        made.add_row(row["parts"], *seconds, *shares)
    return made


def main(words: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    made = argparse.ArgumentParser("benchmarks/large_file.py", description="verify of large files")
    cli.seconds(made, "--gigabytes", "of the student's files", 2.1)
    cli.whole(made, "--width", "of every layer", 4096)
    made.add_argument("--bundle", type=Path, metavar="DIR", help="keep the bundle here")
    made.add_argument("--json", metavar="FILE", help="write the figures as JSON; - is stdout")
    options = made.parse_args(words)
    cli.check_json(options.json)
    report = Report(SCHEMA, options.json)
    facts = environment(
        torch.device("cpu"), {"gigabytes": options.gigabytes, "width": options.width}
    )
    with ExitStack() as stack:
        folder = options.bundle or Path(stack.enter_context(tempfile.TemporaryDirectory())) / "b"
        # Apart, so that the memory of the export is free again.
        with multiprocessing.get_context("spawn").Pool(1) as apart:
            apart.apply(bundle, (folder, options.gigabytes, options.width))
        size = files_of(folder)
        rows = [measured(folder, parts) for parts in _PARTS]
    report.show(result_table(rows, size))
    report.write(facts, rows, file_bytes=size, target=TARGET)


if __name__ == "__main__":
    main()
