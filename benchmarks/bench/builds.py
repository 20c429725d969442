"""Two builds of the package in one race: a worker process for each, of which one runs at a time.

A worker waits for its orders without using the processor, so the other has the machine for itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.forms import Lap
from bench.laps import Setting
from bench.options import fail

BENCHMARKS = Path(__file__).parents[1]
CHECKOUT = BENCHMARKS.parent


@dataclass(frozen=True)
class Build:
    """A checkout and the Python that runs it."""

    checkout: Path
    python: Path

    @property
    def commit(self) -> str | None:
        """The commit that is checked out, with "-dirty" where files differ; None without git."""
        words = ("git", "-C", str(self.checkout), "describe", "--always", "--dirty", "--exclude=*")
        try:
            done = subprocess.run(words, capture_output=True, text=True)
        except FileNotFoundError:
            return None
        return done.stdout.strip() or None


THIS = Build(CHECKOUT, Path(sys.executable))


def other(checkout: Path, python: Path | None) -> Build:
    """The build of another checkout; what is no checkout or has no Python ends the process."""
    checkout = checkout.resolve()
    if not (checkout / "opdf_compile").is_dir():
        fail(f"--against is {checkout}, which holds no opdf_compile; give a checkout")
    # Not resolved: a virtual environment is found by the path of its link.
    python = (python or checkout / ".venv/bin/python").absolute()
    if not python.exists():
        fail(f"{python} does not exist; name the Python of {checkout} with --against-python")
    return Build(checkout, python)


class Worker:
    """Laps in the process of a build.

    Attributes:
        facts: The commit, and what the process says about itself (lap_worker.py).
    """

    def __init__(self, build: Build, setting: Setting, process: subprocess.Popen[bytes]) -> None:
        """Let the process build the forms and warm them up."""
        self._build, self._process = build, process
        said = self._ask(asdict(setting))
        package = Path(said.pop("package"))
        if not package.is_relative_to(build.checkout):
            fail(f"{build.python} runs {package}, which is not in {build.checkout}")
        self.facts: dict[str, Any] = {"commit": build.commit, **said}

    def lap(self, form: str, accumulation: int) -> Lap:
        """See `Laps`."""
        return Lap(*self._ask([form, accumulation]))

    def _ask(self, order: Any) -> Any:
        pipes: Any = self._process
        try:
            pipes.stdin.write(json.dumps(order).encode() + b"\n")
            reply = pipes.stdout.readline()
        except BrokenPipeError:
            reply = b""
        if not reply:
            fail(f"the process of {self._build.checkout} ended at {json.dumps(order)}; see above")
        return json.loads(reply)


@contextmanager
def worker(build: Build, setting: Setting) -> Iterator[Worker]:
    """A worker, for the length of the block."""
    folders = (str(BENCHMARKS), str(build.checkout), os.environ.get("PYTHONPATH"))
    command = [str(build.python), "-P", "-m", "bench.lap_worker"]
    with subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, folders))},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    ) as process:
        yield Worker(build, setting, process)
