"""Tables of operators that torch's exporters make for every model, made less often.

`ONNXRegistry.from_torchlib` parses the sources of onnxscript's 500 functions for every file: three
quarters of the time of a small export. And before each decomposition torch asks its dispatcher for
all composite operators, once for each of some thirty namespaces.
"""

from __future__ import annotations

import functools
from typing import Any
from unittest import mock

from torch._export import utils
from torch.export import decomp_utils, exported_program

COLLECT = "_collect_all_valid_cia_ops"


def ask_once() -> None:
    """Ask the dispatcher once in a collection: nothing is registered while it goes on."""
    collect = getattr(utils, COLLECT)
    if hasattr(collect, "__wrapped__"):
        return

    @functools.wraps(collect)
    def collected() -> Any:
        utils._materialize_cpp_cia_ops()
        with mock.patch.object(utils, "_materialize_cpp_cia_ops", lambda: None):
            return collect()

    for module in (utils, exported_program, decomp_utils):
        setattr(module, COLLECT, collected)


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
