"""The command line that all benchmarks share."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import torch


def parser(
    name: str, description: str, *, models: Sequence[str] = (), known: Sequence[str] = ()
) -> argparse.ArgumentParser:
    """The options of every benchmark.

    Args:
        name: The script's file name.
        description: One line for `--help`.
        models: The models that run if none are named.
        known: The models that may be named; none where the benchmark has its own.
    """
    made = argparse.ArgumentParser(prog=f"benchmarks/{name}", description=description)
    if known:
        choices(made, "--models", known, models)
    made.add_argument("--cores", type=_whole("--cores", 2), help="cores per weight")
    made.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    made.add_argument("--threads", type=_whole("--threads", 1), help="threads of torch")
    made.add_argument("--json", metavar="FILE", help="write the figures as JSON; - is stdout")
    made.add_argument("--seed", type=_whole("--seed", 0), default=0, help="default 0")
    return made


def add_rounds(made: argparse.ArgumentParser, *, budget: float) -> None:
    """Add `--rounds` and `--budget` to a benchmark that measures times."""
    made.add_argument(
        "--rounds", type=_whole("--rounds", 2), help="rounds of each race (default: by budget)"
    )
    made.add_argument(
        "--budget",
        type=_seconds("--budget"),
        default=budget,
        help=f"seconds for each race, where --rounds is not given (default {budget:g})",
    )
    made.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: processor time, for a busy machine and --threads 1 (default wall)",
    )


def add_builds(made: argparse.ArgumentParser) -> None:
    """Add `--against` and `--against-python` to a benchmark that races two builds."""
    made.add_argument(
        "--against", type=Path, metavar="CHECKOUT", help="a build to race against, step by step"
    )
    made.add_argument(
        "--against-python",
        type=Path,
        metavar="PYTHON",
        help="what runs it (default .venv/bin/python in the checkout)",
    )


def parse(made: argparse.ArgumentParser, words: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line, check the device and set the threads.

    Args:
        made: The parser.
        words: The command line; that of the process if None.

    Returns:
        The options, with `device` as a torch.device. A bad one ends the process with exit code 2
        and one sentence.
    """
    options = made.parse_args(words)
    options.device = _device(options.device)
    check_json(options.json)
    if getattr(options, "clock", "wall") == "cpu" and options.device.type != "cpu":
        fail("--clock is cpu, which does not see a GPU's work; leave it out")
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    return options


def accumulations(made: argparse.ArgumentParser, *default: int) -> None:
    """Add `--accumulation`."""
    made.add_argument(
        "--accumulation",
        type=_numbers("--accumulation"),
        default=tuple(default),
        metavar="A,A,..",
        help=f"micro-batches per optimizer step (default {','.join(map(str, default))})",
    )


def choices(
    made: argparse.ArgumentParser, option: str, known: Sequence[str], default: Sequence[str]
) -> None:
    """Add an option that names some of `known`, separated by commas."""
    made.add_argument(
        option,
        type=_choice(option, known),
        default=tuple(default),
        metavar="N,N,..",
        help=f"of {', '.join(known)} (default {','.join(default)})",
    )


def numbers(made: argparse.ArgumentParser, option: str, what: str, *default: int) -> None:
    """Add an option that takes whole numbers from 1, separated by commas."""
    made.add_argument(
        option,
        type=_numbers(option),
        default=tuple(default),
        metavar="N,N,..",
        help=f"{what} (default {','.join(map(str, default))})",
    )


def whole(
    made: argparse.ArgumentParser, option: str, what: str, default: int | None, *, least: int = 1
) -> None:
    """Add an option that takes one whole number."""
    usual = "" if default is None else f" (default {default})"
    made.add_argument(
        option, type=_whole(option, least), default=default, metavar="N", help=f"{what}{usual}"
    )


def seconds(made: argparse.ArgumentParser, option: str, what: str, default: float) -> None:
    """Add an option that takes a positive number of seconds."""
    made.add_argument(
        option,
        type=_seconds(option),
        default=default,
        metavar="SECONDS",
        help=f"{what} (default {default:g})",
    )


def check_json(target: str | None) -> None:
    """Refuse a file in a folder that is not there before anything is run."""
    if target not in (None, "-") and not Path(target).parent.is_dir():
        fail(f"--json is {target}, whose folder does not exist; create it or name another")


def fail(sentence: str) -> NoReturn:
    """End the process with exit code 2 and one sentence."""
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(2)


def _device(name: str) -> torch.device:
    if name not in ("cpu", "cuda"):
        fail(f"--device is {name!r}; give cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        built = torch.version.cuda
        found = "finds no CUDA device" if built else "is built without CUDA"
        fail(f"--device is cuda, but this torch {found}; give --device cpu or mend that")
    return torch.device(name)


def _choice(option: str, known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    def read(text: str) -> tuple[str, ...]:
        names = tuple(dict.fromkeys(text.split(",")))
        for name in names:
            if name not in known:
                fail(f"{option} names {name!r}; give some of {', '.join(known)}")
        return names

    return read


def _numbers(option: str) -> Callable[[str], tuple[int, ...]]:
    one = _whole(option, 1)
    return lambda text: tuple(dict.fromkeys(one(part) for part in text.split(",")))


def _whole(option: str, least: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            fail(f"{option} is {text!r}; give whole numbers from {least}")
        return int(text)

    return read


def _seconds(option: str) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value > 0):
            fail(f"{option} is {text!r}; give seconds above 0")
        return value

    return read
