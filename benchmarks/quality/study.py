"""The study: units in a fixed order, each written down when it ends; begun again, it goes on."""

from __future__ import annotations

import json
import platform
import time
from pathlib import Path
from typing import Any

import torch

from quality.fleet import OptimizerName
from quality.methods import METHODS
from quality.tasks import CONFIRMATION, load
from quality.units import Budget, unit

SCHEMA = "opdf-quality-runs/1"
# PROTOCOL.md fixes these; the tiny budget only shows that everything runs.
FULL = Budget({"short": 120, "long": 480}, (3, 4, 8), 64, tuple(m.name for m in METHODS))
SMALL = Budget({"short": 120, "long": 480}, (1, 2), 12, ("plain", "mpo"))
TINY = Budget({"short": 4, "long": 8}, (1, 1), 3, tuple(m.name for m in METHODS))
# Not in the protocol: asked after its results were seen, whether more tuning would change them.
EXTENDED = Budget({"short": 120}, (3, 4, 8, 8, 8, 8), 64, ("plain", "mpo"))
BUDGETS = {"full": FULL, "small": SMALL, "tiny": TINY, "extended": EXTENDED}
# The primary setting on every task comes first, so that a stop leaves it whole.
SETTINGS: tuple[tuple[OptimizerName, str], ...] = (
    ("sgd", "short"),
    ("sgd", "long"),
    ("adamw", "short"),
)


def run(
    data: Path,
    path: Path,
    *,
    device: torch.device,
    budget: str | Budget,
    seconds: float,
    record: bool,
    tasks: tuple[str, ...] = CONFIRMATION,
    settings: tuple[tuple[OptimizerName, str], ...] = SETTINGS,
) -> dict[str, Any]:
    """Run what is not in the file yet; no unit begins that would probably not end in time.

    Args:
        data: The prepared file.
        path: Where the results are written, after every unit.
        device: Where to train.
        budget: "full", "small" or "tiny", or one of its own.
        seconds: Time for the whole call.
        record: Record steps as CUDA graphs.
        tasks: Names of tasks.
        settings: (optimizer, length) pairs, the most important first.
    """
    started = time.perf_counter()
    size = budget if isinstance(budget, Budget) else BUDGETS[budget]
    result = _begun(path, budget if isinstance(budget, str) else "own", device)
    done = {(u["task"], u["optimizer"], u["length"]) for u in result["units"]}
    students: dict[str, Any] = {name: {} for name in tasks}
    longest: dict[str, float] = {}
    for optimizer, length in settings:
        for name in tasks:
            if (name, optimizer, length) in done:
                continue
            spent = time.perf_counter() - started
            if spent + longest.get(length, 0.0) > seconds:
                print(f"{name} {optimizer} {length}: left out, {spent:.0f} s spent", flush=True)
                continue
            found = unit(
                load(data, name, device),
                optimizer,
                length,
                size,
                record=record,
                students=students[name],
            )
            longest[length] = max(longest.get(length, 0.0), found["seconds"])
            result["units"].append(found)
            _write(path, result)
            print(f"{name} {optimizer} {length}: {found['seconds']:.0f} s", flush=True)
    return result


def _begun(path: Path, budget: str, device: torch.device) -> dict[str, Any]:
    if path.exists():
        return dict(json.loads(path.read_text()))
    cuda = device.type == "cuda"
    return {
        "schema": SCHEMA,
        "budget": budget,
        "device": torch.cuda.get_device_name(0) if cuda else platform.machine(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "units": [],
    }


def _write(path: Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(result))
    beside.replace(path)
