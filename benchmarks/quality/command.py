"""`python benchmarks/quality prepare | run | page`: see PROTOCOL.md. `second ..` is study 2."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from quality.second import command as second

_RESULTS = Path(__file__).resolve().parents[1] / "results"


def main() -> None:
    """Parse the command line and do what it says."""
    parser = argparse.ArgumentParser(prog="benchmarks/quality", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    prepare = commands.add_parser("prepare", help="data, splits and teachers into one file")
    prepare.add_argument("--wheels", type=Path, required=True, help="folder with the wheels")
    prepare.add_argument("--data", type=Path, required=True)
    prepare.add_argument("--tasks", nargs="*", default=None)
    run = commands.add_parser("run", help="tune and train")
    run.add_argument("--data", type=Path, required=True)
    run.add_argument("--json", type=Path, required=True)
    run.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    run.add_argument("--budget", type=float, default=330.0, help="seconds")
    run.add_argument("--size", choices=("full", "small", "tiny", "extended"), default="full")
    run.add_argument("--tasks", nargs="*", default=None)
    run.add_argument("--settings", nargs="*", default=None, help="as sgd-short; default: all")
    run.add_argument("--no-record", action="store_true", help="no CUDA graphs")
    page = commands.add_parser("page", help="rows, plots and docs/evidence.md")
    page.add_argument("--runs", type=Path, default=_RESULTS / "quality-runs.json")
    page.add_argument("--text", type=Path, default=_RESULTS / "quality-text.json")
    page.add_argument("--extended", type=Path, default=_RESULTS / "quality-extended.json")
    page.add_argument("--json", type=Path, default=_RESULTS / "quality.json")
    page.add_argument("--plot", type=Path, default=None)
    page.add_argument("--page", type=Path, default=None)
    second.add(commands)
    options = parser.parse_args()
    acts = {"prepare": _prepare, "run": _run, "page": _page, "second": second.act}
    acts[options.command](options)


def _prepare(options: argparse.Namespace) -> None:
    from quality.tasks import CONFIRMATION, prepare

    torch.set_num_threads(1)
    prepare(options.tasks or CONFIRMATION, options.wheels, options.data)


def _run(options: argparse.Namespace) -> None:
    from quality.study import SETTINGS, run
    from quality.tasks import CONFIRMATION

    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda was asked for and torch finds no CUDA device")
    device = torch.device(options.device)
    # Its tensors are small: a second thread gains little, and waits long on a busy machine.
    torch.set_num_threads(1)
    run(
        options.data,
        options.json,
        device=device,
        budget=options.size,
        seconds=options.budget,
        record=device.type == "cuda" and not options.no_record,
        tasks=tuple(options.tasks or CONFIRMATION),
        settings=tuple(s for s in SETTINGS if "-".join(s) in (options.settings or "-".join(s))),
    )


def _page(options: argparse.Namespace) -> None:
    from quality.page import write

    o = options
    write(o.runs, o.text, o.json, o.plot, o.page, o.extended)
