"""A table of operators that torch's exporters make for every model, made less often.

Before each decomposition torch asks its dispatcher for all composite operators, once for each of
some thirty namespaces.
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
