"""What runs in a process of its own: one class, one row."""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.runner import empty_row
from zoo.worker import quiet_terminal


def work(name: str, options: Mapping[str, Any], path: str) -> None:
    """Try one class, and write its row to a file.

    Args:
        name: The class, as the catalogue names it.
        options: None are known.
        path: The file for the row.
    """
    import torch

    torch.set_num_threads(1)
    # Steps that their package compiles run as they are written: minutes less, the same arithmetic.
    torch.compiler.set_stance("force_eager")
    quiet_terminal()
    warnings.simplefilter("ignore")
    from optimizers.catalogue import offer
    from optimizers.journey import travel

    found = offer(name)
    if found.need.group:
        _alone()
    row = {**empty_row(name), **travel(found), "status": "passed"}
    Path(path).write_text(json.dumps(row), encoding="utf-8")


def _alone() -> None:
    """A process group of this process."""
    import torch.distributed as dist

    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    file = Path(tempfile.mkdtemp()) / "store"
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=0, world_size=1)
