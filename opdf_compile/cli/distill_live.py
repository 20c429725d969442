"""What a training run looks like on a terminal: bars, and a table that grows with validations."""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from rich.console import Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from opdf_compile.cli.formats import table
from opdf_compile.cli.terminal import Description, Terminal
from opdf_compile.distill.run import Finished, Saved, Stage, Started, Stepped, Validated

if TYPE_CHECKING:
    from opdf_compile.distill.run import Event

_LOG = logging.getLogger("opdf_compile")
_ROWS = 8


@contextlib.contextmanager
def watching(terminal: Terminal) -> Iterator[Callable[[Event], None]]:
    """Draw a run on a terminal while the block lasts; elsewhere it goes to the log alone."""
    screen = Screen()
    if not terminal.animated:
        yield screen.told
        return
    with Live(
        get_renderable=screen.drawn,
        console=terminal.progress_console,
        refresh_per_second=5,
        transient=True,
    ):
        yield screen.told


class Screen:
    """The state of what is drawn."""

    def __init__(self) -> None:
        self._bars = Progress(
            Description(),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._stages = Progress(Description(), BarColumn(), TimeElapsedColumn())
        self._training: TaskID | None = None
        self._stage: tuple[str, TaskID] | None = None
        self._rows: deque[tuple[str, ...]] = deque(maxlen=_ROWS)
        self._metric = "metric"
        self._last: Stepped | None = None

    def told(self, event: Event) -> None:
        """Take in what the run tells."""
        match event:
            case Started():
                self._start(event)
            case Stage():
                self._show_stage(event)
            case Stepped():
                self._last = event
                if self._training is not None:
                    text = f"training, loss {event.loss:.4g}"
                    self._bars.update(self._training, completed=event.step, description=text)
            case Validated():
                self._validated(event)
            case Saved():
                _LOG.debug("checkpoint %s", event.path)
            case Finished():
                self._end_stage()

    def drawn(self) -> Group:
        """What is on the screen now."""
        parts = [self._table()] if self._rows else []
        return Group(*parts, self._bars, self._stages)

    def _start(self, event: Started) -> None:
        self._metric = event.metric
        for note in event.notes:
            _LOG.warning("%s", note)
        where = f" in {event.processes} processes" if event.processes > 1 else ""
        _LOG.info("training on %s%s: steps %d to %d", event.device, where, event.step, event.steps)
        self._training = self._bars.add_task("training", total=event.steps, completed=event.step)

    def _show_stage(self, event: Stage) -> None:
        if self._stage is None or self._stage[0] != event.text:
            self._end_stage()
            _LOG.info("%s", event.text)
            self._stage = event.text, self._stages.add_task(event.text, total=1.0)
        self._stages.update(self._stage[1], completed=event.share)

    def _end_stage(self) -> None:
        if self._stage is not None:
            self._stages.remove_task(self._stage[1])
            self._stage = None

    def _validated(self, event: Validated) -> None:
        last = self._last
        loss = "" if last is None else f"{last.loss:.4g}"
        rate = "" if last is None else f"{last.lr:.3g}"
        _LOG.info(
            "step %d: loss %s, %s %.4f (best %.4f at step %d)",
            *(event.step, loss, self._metric, event.value, event.best, event.best_step),
        )
        left = "" if event.patience is None else f"{event.patience} left"
        mark = "best" if event.best_step == event.step else left
        self._rows.append(
            (f"{event.epoch:.2f}", str(event.step), loss, rate, f"{event.value:.4f}", mark)
        )

    def _table(self) -> Table:
        head = ("epoch", "step", "loss", "rate", self._metric, "")
        made = table("Validation", *head, numbers=head)
        for row in self._rows:
            made.add_row(*row)
        return made
