"""A run in a process of its own: ``run_worker.py RECIPE FOLDER [PLACE]``.

With a PLACE the process kills itself there, as SIGKILL from outside would: nothing is cleaned up.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from opdf_compile.distill.recipe import prepare, read_recipe
from opdf_compile.distill.run import Stepped, cache, finishing, run
from opdf_compile.io.checkpoints import checkpoint
from opdf_compile.io.export import bundling

torch.set_num_threads(1)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def before(module: Any, name: str, count: int, action: Callable[[], None]) -> None:
    """Act before the function is called for the `count`-th time."""
    function, calls = getattr(module, name), [0]

    def counted(*args: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == count:
            action()
        return function(*args, **options)

    setattr(module, name, counted)


# Inside a save the shard is there and the manifest is not; inside an export student.onnx is there.
PLACES: dict[str, tuple[Any, str, int]] = {
    "cache": (cache, "write_tensors", 2),
    "save": (checkpoint, "write_manifest", 2),
    "export": (bundling, "_manifest", 1),
    "verify": (finishing, "verify", 1),
}


def main(recipe: Path, folder: Path, place: str = "") -> None:
    cache.FILE_BYTES = 256  # So that a small cache has several files.
    if place in PLACES:
        before(*PLACES[place], die)

    def watch(event: Any) -> None:
        if isinstance(event, Stepped) and place == f"step-{event.step}":
            die()

    run(prepare(read_recipe(recipe), base=recipe.parent), folder, watch=watch)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
