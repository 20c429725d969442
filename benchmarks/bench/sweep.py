"""The command line of a benchmark that tries many things by name, each in a process of its own.

Every one is a row of the JSON, and the page is made from the JSON: of this run, or with --render
of an earlier one.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from bench.options import check_json, fail

Page = Callable[[Mapping[str, Any]], str]
# A number of processes, of seconds, of MiB.
_NUMBERS = {"jobs": 1, "seconds": 1, "mib": 1}


def parser(
    name: str, description: str, *, such_as: str, seconds: float, mib: float
) -> argparse.ArgumentParser:
    """The options of every sweep.

    Args:
        name: The folder of the benchmark.
        description: One line for `--help`.
        such_as: An example for `--only`.
        seconds: What one process may take, by default.
        mib: What it may hold, by default.
    """
    made = argparse.ArgumentParser(prog=f"benchmarks/{name}", description=description)
    made.add_argument("--only", default="*", metavar="GLOB,GLOB", help=f"such as {such_as!r}")
    made.add_argument("--jobs", type=int, default=1, help="processes at a time (default 1)")
    made.add_argument(
        "--seconds", type=float, default=seconds, help=f"for each (default {seconds:g})"
    )
    made.add_argument("--mib", type=float, default=mib, help=f"memory for each (default {mib:g})")
    made.add_argument("--json", metavar="FILE", help="write the rows as JSON; - is stdout")
    made.add_argument("--page", metavar="FILE", help="write the page from the rows")
    made.add_argument("--render", action="store_true", help="only write --page from --json")
    made.add_argument("--list", action="store_true", help="print the names that --only covers")
    return made


def parse(made: argparse.ArgumentParser, words: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line, of the process if `words` is None."""
    options = made.parse_args(words)
    # Ended from outside, the runner still ends what it started.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    return options


def check(
    options: argparse.Namespace,
    *,
    least: Mapping[str, int] | None = None,
    earlier: Sequence[str] = (),
) -> None:
    """End the process with one sentence if an option of a run is bad.

    Args:
        options: The command line.
        least: The least values of the benchmark's own numbers.
        earlier: Its own options that read the file of --json.
    """
    for option, lowest in {**_NUMBERS, **(least or {})}.items():
        if not getattr(options, option) >= lowest:
            fail(f"--{option} is {getattr(options, option)}; give a number from {lowest}")
    check_json(options.json)
    for option in (*earlier, "page"):
        if getattr(options, option) and options.json in (None, "-"):
            fail(f"--{option} needs the file that --json names; give --json FILE")


def chosen(options: argparse.Namespace, names: Iterable[str], what: str) -> list[str]:
    """The names that --only covers, in their order; --list prints them and ends the process."""
    found = named(options.only, names)
    if not found:
        fail(f"--only is {options.only!r}, which names no {what}; --list prints them")
    if options.list:
        print("\n".join(found))
        raise SystemExit(0)
    return found


def named(globs: str, names: Iterable[str]) -> list[str]:
    """The names that some of the globs (separated by commas) cover."""
    wanted = globs.split(",")
    return [name for name in names if any(fnmatchcase(name, glob) for glob in wanted)]


def load(path: str, schema: str) -> dict[str, Any]:
    """The JSON of a run."""
    try:
        value: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        fail(f"{path} cannot be read ({error}); make it by a run with --json")
    if value.get("schema") != schema:
        fail(f"{path} has the schema {value.get('schema')!r}, wanted {schema!r}; run it again")
    return value


def render(options: argparse.Namespace, schema: str, page: Page) -> None:
    """Write --page from --json."""
    if not options.page or options.json in (None, "-"):
        fail("--render needs --json FILE and --page FILE; give both")
    Path(options.page).write_text(page(load(options.json, schema)), encoding="utf-8")
