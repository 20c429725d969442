"""`python benchmarks/quality second prepare | develop | run | page`: see PROTOCOL.md beside it.

    python benchmarks/quality second prepare --data second.npz [--wheels FOLDER]
    python benchmarks/quality second develop --data second.npz --store development.jsonl
    python benchmarks/quality second run --data second.npz --store confirmation.jsonl --jobs 16
    python benchmarks/quality second page --page docs/evidence.md

A stop loses nothing: each finished run is a line of the store, and the same command goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).resolve().parents[2] / "results"


def add(commands: Any) -> None:
    """Add the command and its own to a parser's commands."""
    second = commands.add_parser(
        "second", description=__doc__, formatter_class=argparse.RawTextHelpFormatter,
        help="study 2: every foldable re-parametrization",
    )  # fmt: skip
    own = second.add_subparsers(dest="second", required=True)
    prepare = own.add_parser("prepare", help="data, splits and teachers into one file")
    prepare.add_argument("--data", type=Path, required=True)
    prepare.add_argument("--wheels", type=Path, help="folder with the wheels of wheels.txt")
    prepare.add_argument("--tasks", nargs="*", help="default: all")
    prepare.add_argument("--teacher-steps", type=int, default=1200)
    for name, about in (
        ("develop", "the development tasks, from which the hypothesis is chosen"),
        ("run", "the confirmation tasks, once, after the protocol is fixed"),
    ):
        run = own.add_parser(name, help=about)
        run.add_argument("--data", type=Path, required=True)
        run.add_argument("--store", type=Path, required=True, help="a .jsonl; it goes on from it")
        run.add_argument("--jobs", type=int, default=1, help="processes of one thread each")
        run.add_argument("--budget", type=float, default=36_000.0, help="seconds")
        run.add_argument("--tiny", action="store_true", help="only to see that it runs")
        run.add_argument("--tasks", nargs="*", help="default: all of them")
    page = own.add_parser("page", help="rows, and the tables of docs/evidence.md")
    page.add_argument("--development", type=Path, default=RESULTS / "second-development.jsonl")
    page.add_argument("--confirmation", type=Path, default=RESULTS / "second-confirmation.jsonl")
    page.add_argument("--tiny", action="store_true", help="of a confirmation that ran so")
    page.add_argument("--json", type=Path, help="where the rows go")
    page.add_argument("--plot", type=Path, help="where the picture of the differences goes")
    page.add_argument("--page", type=Path, help="the page whose tables are filled")


def act(options: argparse.Namespace) -> None:
    """Do what was asked."""
    torch.set_num_threads(1)
    if options.second == "prepare":
        from quality.second.tasks import SOURCES, prepare

        tasks = _known(options.tasks, tuple(SOURCES))
        prepare(tasks, options.wheels, options.data, teacher_steps=options.teacher_steps)
    elif options.second == "page":
        from quality.second.page import write

        o = options
        write(o.development, o.confirmation, tiny=o.tiny, path=o.json, page=o.page, plot=o.plot)
    else:
        _run(options)


def _run(options: argparse.Namespace) -> None:
    from quality.second import plan
    from quality.second.store import Store
    from quality.second.study import study
    from quality.second.tasks import CONFIRMATION, DEVELOPMENT, TEXT
    from quality.second.textual import missing_file

    development = options.second == "develop"
    tasks = _known(options.tasks, DEVELOPMENT if development else (*CONFIRMATION, TEXT))
    lacking = missing_file(options.data) if TEXT in tasks else None
    if lacking:
        raise SystemExit(lacking)
    asked = plan.DEVELOPMENT if development else plan.CONFIRMATION
    stages = [stage.of(tasks, tiny=options.tiny) for stage in asked]
    study(
        options.data,
        Store(options.store),
        [stage for stage in stages if stage.tasks],
        jobs=options.jobs,
        seconds=options.budget,
        say=lambda line: print(line, flush=True),
    )


def _known(asked: list[str] | None, tasks: tuple[str, ...]) -> tuple[str, ...]:
    unknown = [name for name in asked or () if name not in tasks]
    if unknown:
        raise SystemExit(f"no task {', '.join(unknown)} here, wanted some of {', '.join(tasks)}")
    return tuple(asked or tasks)
