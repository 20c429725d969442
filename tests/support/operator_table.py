"""The table of operators of torch's exporter, read once for all exports of a process.

`ONNXRegistry.from_torchlib` parses the sources of onnxscript's 500 functions for every file: three
quarters of the time of a small export.
"""

from __future__ import annotations

import functools
from typing import Any


def share() -> None:
    """Read it once; each export still has a registry of its own, which it may add to."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    if hasattr(ONNXRegistry.from_torchlib, "__wrapped__"):
        return
    read = functools.cache(ONNXRegistry.from_torchlib)

    @functools.wraps(ONNXRegistry.from_torchlib)
    def copied(*arguments: Any, **named: Any) -> ONNXRegistry:
        known, made = read(*arguments, **named), ONNXRegistry()
        vars(made).update(vars(known))
        made.functions = {target: list(found) for target, found in known.functions.items()}
        return made

    setattr(ONNXRegistry, "from_torchlib", staticmethod(copied))  # noqa: B010


def anew() -> Any:
    """What reads it for every file, as in a user's process; to be put in its place."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    share()
    return ONNXRegistry.from_torchlib.__wrapped__  # type: ignore[attr-defined]
