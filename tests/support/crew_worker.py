"""One rank of a crew: calls the tasks that it is sent, until the pipe closes.

python crew_worker.py FILE_DESCRIPTOR RANK RANKS STORE
"""

from __future__ import annotations

import faulthandler
import importlib
import pickle
import sys
import traceback
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist


def answer(module: str, task: str, arguments: dict[str, Any]) -> tuple[bool, Any]:
    """What a task returned, or the traceback of what it raised."""
    torch.manual_seed(0)
    try:
        return True, getattr(importlib.import_module(module), task)(**arguments)
    except Exception:  # The parent raises it again.
        return False, traceback.format_exc()


def main() -> None:
    descriptor, rank, ranks = map(int, sys.argv[1:4])
    torch.set_num_threads(1)
    pipe: Connection = Connection(descriptor)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{sys.argv[4]}",
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=90),
    )
    while True:
        try:
            module, task, arguments, timeout = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        # Shortly before the parent gives up, so that its report says where this rank was.
        faulthandler.dump_traceback_later(max(timeout - 1.0, 0.5))
        done = answer(module, task, arguments)
        faulthandler.cancel_dump_traceback_later()
        pipe.send_bytes(pickle.dumps(done))


if __name__ == "__main__":
    main()
