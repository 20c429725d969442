"""Where a benchmark's figures go: a table for people, JSON for programs."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from opdf_compile import __version__
from opdf_compile.files.atomic import atomic_write

_LIBRARIES = ("torch", "transformers", "timm", "numpy")
# Tables that nobody looks at on a screen are read by programs, which dislike wrapped lines.
_PIPE_WIDTH = 160


def row(
    model: str,
    form: str,
    *,
    accumulation: int | None = None,
    cores: int | None = None,
    ratio: float | None = None,
    low: float | None = None,
    high: float | None = None,
    floor: float | None = None,
    **more: Any,
) -> dict[str, Any]:
    """One row of the JSON: the fields that all benchmarks share, then the benchmark's own.

    A field that has no meaning for a row is None.
    """
    return {
        "model": model,
        "form": form,
        "accumulation": accumulation,
        "cores": cores,
        "ratio": ratio,
        "ci_low": low,
        "ci_high": high,
        "floor": floor,
        **more,
    }


def environment(device: torch.device, options: Mapping[str, Any]) -> dict[str, Any]:
    """What the figures depend on: versions, machine, options, and how busy the machine is.

    Args:
        device: Where the work is done.
        options: The command line; what JSON cannot hold is written as text.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    plain = {key: value for key, value in options.items() if key != "json"}
    return {
        "versions": {
            "opdf-compile": __version__,
            **{library: _version(library) for library in _LIBRARIES},
        },
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": {"type": device.type, "name": name},
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "tf32": torch.backends.cuda.matmul.allow_tf32 if device.type == "cuda" else False,
        # Above the number of threads in use, others were at work too.
        "load_average": os.getloadavg()[0],
        "options": json.loads(json.dumps(plain, default=str)),
    }


class Report:
    """The console and the JSON of one benchmark.

    Attributes:
        schema: Name and version of the JSON.
    """

    def __init__(self, schema: str, target: str | None) -> None:
        """Open the console: stdout, or stderr where stdout belongs to the JSON."""
        self.schema, self._target = schema, target
        stream = sys.stderr if target == "-" else sys.stdout
        width = None if stream.isatty() else _PIPE_WIDTH
        self.console = Console(file=stream, width=width, highlight=False, markup=False)
        self._progress = Console(file=sys.stderr, highlight=False, markup=False)

    def show(self, *renderables: Any) -> None:
        """Print tables or lines."""
        for renderable in renderables:
            self.console.print(renderable, soft_wrap=isinstance(renderable, str))

    def write(
        self,
        environment: Mapping[str, Any],
        rows: Sequence[Mapping[str, Any]],
        *,
        partial: bool = False,
        **more: Any,
    ) -> None:
        """Write the JSON that `--json` asked for, in one step.

        Args:
            environment: Of the run.
            rows: The figures.
            partial: More rows will follow: a long run that is stopped keeps what it has.
            **more: Further fields of the JSON.
        """
        if self._target is None or (partial and self._target == "-"):
            return
        value = {"schema": self.schema, "environment": environment, "rows": rows, **more}
        text = json.dumps(value, indent=2, allow_nan=False) + "\n"
        if self._target == "-":
            sys.stdout.write(text)
            return
        with atomic_write(Path(self._target)) as temporary:
            temporary.write_text(text, encoding="utf-8")

    @contextmanager
    def progress(self, what: str) -> Iterator[Bar]:
        """A bar on stderr while the block runs, on a terminal only."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
        )
        hidden = not self._progress.is_terminal
        with Progress(*columns, console=self._progress, transient=True, disable=hidden) as bar:
            yield Bar(bar, bar.add_task(what, total=1.0), what)


@dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes:
        progress: What draws it.
        task: Its place there.
        what: The text at its beginning.
    """

    progress: Progress
    task: TaskID
    what: str

    def callback(self, text: str, share: float) -> None:
        """Show a share of the work as done, 0 to 1."""
        described = f"{self.what}, {text}"
        self.progress.update(self.task, completed=share, description=described)


def table(title: str, *columns: str, left: int = 2) -> Table:
    """An empty table whose first `left` columns are text and whose others are numbers."""
    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for place, column in enumerate(columns):
        made.add_column(column, justify="left" if place < left else "right", no_wrap=True)
    return made


def number(value: float | None, digits: int = 3) -> str:
    """A number for a table; a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def span(low: float | None, high: float | None) -> str:
    """An interval for a table."""
    return "-" if low is None or high is None else f"{low:.3f}-{high:.3f}"


def ratio(found: Mapping[str, Any]) -> str:
    """A ratio with its interval."""
    return f"{found['ratio']:.4f} [{found['ci_low']:.4f}, {found['ci_high']:.4f}]"


def finite(value: float) -> float | None:
    """The number, or None where JSON has no word for it (an interval of one round is unbounded)."""
    return value if abs(value) != float("inf") else None


def processor() -> str:
    """The CPU's name."""
    for line in _cpuinfo():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cpuinfo() -> list[str]:
    source = Path("/proc/cpuinfo")
    return source.read_text(encoding="utf-8").splitlines() if source.exists() else []


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
