"""Where a command's words go: the table to stdout, progress and warnings to stderr, JSON apart."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TimeElapsedColumn,
)
from rich.text import Text

from opdf_compile.cli.printable import printable
from opdf_compile.errors import ArtefactError

LOGGER = "opdf_compile"
# Tables that nobody looks at on a screen are read by programs, which dislike wrapped lines.
_PIPE_WIDTH = 160


class Description(ProgressColumn):
    """What is being done; names of files and weights in it are neither markup nor commands."""

    def render(self, task: Task) -> Text:
        """The description as it is."""
        return Text(printable(task.description))


class Terminal:
    """What a command may say, and where.

    Attributes:
        animated: Whether bars and live tables are drawn: on a terminal, unless quiet.
        progress_console: Where bars are drawn.
    """

    def __init__(self, stdout: TextIO, *, json_target: str | None, quiet: bool) -> None:
        """Opens both consoles; `stdout` is the real one, also while it is redirected."""
        self._quiet, self._stdout, self._json_target = quiet, stdout, json_target
        self._out, self.progress_console = _console(stdout), _console(sys.stderr)
        self.animated = not quiet and self.progress_console.is_terminal

    def show(self, *renderables: RenderableType) -> None:
        """Prints tables or text for a person; nothing when quiet or when JSON goes to stdout."""
        if self._quiet or self._json_target == "-":
            return
        for renderable in renderables:
            # Tables are laid out; a line stays one line, so that it can be copied and searched.
            text = printable(renderable) if isinstance(renderable, str) else renderable
            self._out.print(text, soft_wrap=isinstance(text, str | Text))

    def warn(self, message: str) -> None:
        """Prints a warning to stderr; unlike the log's, it is part of the command's result."""
        if not self._quiet:
            self.progress_console.print(
                Text.assemble(("warning: ", "yellow"), printable(message)), soft_wrap=True
            )

    def result(self, payload: Mapping[str, Any]) -> None:
        """Writes the JSON that `--json` asked for.

        Raises:
            ArtefactError: The file cannot be written.
        """
        if self._json_target is None:
            return
        text = json.dumps(payload, indent=2, allow_nan=False) + "\n"
        if self._json_target == "-":
            self._stdout.write(text)
            self._stdout.flush()
            return
        from opdf_compile.files import atomic_write

        with atomic_write(Path(self._json_target)) as temporary:
            temporary.write_text(text, encoding="utf-8")

    @contextlib.contextmanager
    def busy(self, what: str) -> Iterator[Callable[[str, float], None]]:
        """Shows a spinner on a terminal while the block runs; nothing elsewhere.

        Told what is being done now and the share that is, it shows a bar.
        """
        columns = (SpinnerColumn(), Description(), BarColumn(), TimeElapsedColumn())
        screen, hidden = self.progress_console, not self.animated
        with Progress(*columns, console=screen, transient=True, disable=hidden) as progress:
            task = progress.add_task(what, total=None)
            yield lambda text, share: progress.update(
                task, description=text, completed=share, total=1.0
            )


@contextlib.contextmanager
def opened(
    json_target: str | None, *, quiet: bool, verbose: bool, debug: bool
) -> Iterator[Terminal]:
    """Gives a command its terminal, and keeps everything else off the standard output.

    Models and exporters print as they like; inside the block that goes to stderr, so that the
    output of `--json -` is JSON and nothing else.

    Raises:
        ArtefactError: The JSON cannot be written; said before any work is done.
    """
    if json_target is not None and json_target != "-":
        require_folder(Path(json_target))
    terminal = Terminal(sys.stdout, json_target=json_target, quiet=quiet)
    level = _level(quiet=quiet, verbose=verbose, debug=debug)
    with _logging_to(sys.stderr, level), contextlib.redirect_stdout(sys.stderr):
        yield terminal


def require_folder(target: Path) -> None:
    """Refuses a report that could not be written, before the work that it would report.

    Raises:
        ArtefactError: The target is a folder, or its own folder does not exist.
    """
    if target.is_dir():
        raise ArtefactError(f"cannot write {target}: it is a folder; name a file in it")
    if not target.parent.is_dir():
        raise ArtefactError(
            f"cannot write {target}: the folder {target.parent} does not exist; create it or "
            "name another file"
        )


def _level(*, quiet: bool, verbose: bool, debug: bool) -> int:
    if debug:
        return logging.DEBUG
    if verbose:
        return logging.INFO
    return logging.ERROR if quiet else logging.WARNING


@contextlib.contextmanager
def _logging_to(stream: TextIO, level: int) -> Iterator[None]:
    """Lets the package's logger speak on a stream, and others' warnings only when asked to."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_Plain())
    handler.addFilter(_Once())
    logger, warnings_logger = logging.getLogger(LOGGER), logging.getLogger("py.warnings")
    before = logger.level, warnings_logger.level, warnings_logger.propagate
    logger.addHandler(handler)
    logger.setLevel(level)
    # torch and the exporter warn about themselves dozens of times per export.
    warnings_logger.addHandler(handler)
    warnings_logger.setLevel(level if level <= logging.INFO else logging.CRITICAL)
    warnings_logger.propagate = False
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        logger.removeHandler(handler)
        warnings_logger.removeHandler(handler)
        logger.setLevel(before[0])
        warnings_logger.setLevel(before[1])
        warnings_logger.propagate = before[2]


class _Once(logging.Filter):
    """Lets a warning through the first time: a command may build the same thing many times."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record says something new, or is no warning."""
        if record.levelno != logging.WARNING:
            return True
        message = record.getMessage()
        new = message not in self._said
        self._said.add(message)
        return new


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = printable(super().format(record), lines=record.exc_info is not None)
        return f"{record.levelname.lower()}: {text}"


def _console(stream: TextIO) -> Console:
    fixed = None if stream.isatty() or "COLUMNS" in os.environ else _PIPE_WIDTH
    # Keys and messages hold brackets of their own, so nothing is read as markup.
    return Console(file=stream, width=fixed, highlight=False, emoji=False, markup=False)
