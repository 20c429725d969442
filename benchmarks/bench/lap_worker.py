"""The process that runs the laps of one build; `Worker` in builds.py starts it.

It reads a JSON value a line: the setting, then [form, accumulation] for each lap. It answers each
with a line: facts about the build, then [seconds, seconds of the optimizer]. It ends when its input
ends. Of opdf_compile it may use, and import, only what every build has.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import sys
from importlib import metadata
from typing import Any, TextIO

import torch

import opdf_compile as opdf
from bench.laps import OwnLaps, Setting


def facts(laps: OwnLaps) -> dict[str, Any]:
    """What tells builds apart; `package` is where the package was found."""
    return {
        "package": opdf.__file__,
        "versions": {"python": platform.python_version(), "torch": metadata.version("torch")},
        "threads": torch.get_num_threads(),
        "scale": laps.plan.scale,
        "weights": len(laps.plan.entries),
    }


def serve(orders: TextIO, replies: TextIO) -> None:
    """Answer the orders until there are no more."""
    setting = Setting(**json.loads(orders.readline()))
    if setting.threads:
        torch.set_num_threads(setting.threads)
    laps = OwnLaps(setting, *setting.planned())
    _say(facts(laps), replies)
    gc.collect()
    gc.disable()
    for order in orders:
        form, accumulation = json.loads(order)
        _say(laps.lap(form, accumulation), replies)


def _say(value: Any, replies: TextIO) -> None:
    replies.write(json.dumps(value) + "\n")
    replies.flush()


if __name__ == "__main__":
    # What a library prints must not come between the replies.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(sys.stdin, answers)
