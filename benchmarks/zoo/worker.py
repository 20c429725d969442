"""What runs in a process of its own: one architecture, one row."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def work(name: str, options: Mapping[str, Any], path: str) -> None:
    """Take one architecture through the pipeline, and keep its row in a file.

    The row is written before each step too: a process that is killed leaves what it had.

    Args:
        name: The architecture.
        options: `cores` and `export` of `travel`, or `form` and `export` of `travel_sites`.
        path: The file for the row.
    """
    import torch

    torch.set_num_threads(1)
    quiet_terminal()
    from zoo.architectures import ARCHITECTURES
    from zoo.journey import travel
    from zoo.sites_journey import travel_sites

    made: Callable[..., Row] = travel_sites if "form" in options else travel
    made(ARCHITECTURES[name], note=writer(Path(path)), **options)


def writer(path: Path) -> Callable[[Row], None]:
    """A function that keeps a row in a file, whole at each moment."""

    def write(row: Row) -> None:
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps(row), encoding="utf-8")
        temporary.replace(path)

    return write


def quiet_terminal() -> None:
    """Send what libraries print to nowhere; the table belongs to the parent."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    os.close(nowhere)
