"""What is said before and while weights are factorised: the cost of the plan, and how far it is."""

from __future__ import annotations

import logging
from collections.abc import Callable

from opdf_compile.planning import Plan, assumed_rows, cost_warning

WeightProgress = Callable[[str, int, int], None]
_LOG = logging.getLogger("opdf_compile")


def announced(plan: Plan, progress: WeightProgress | None) -> WeightProgress:
    """Warn of dear weights now; what to call before each decomposition.

    Args:
        plan: What is about to be factorised.
        progress: The caller's own, called as well; see `hoist` and `expand`.
    """
    warning = cost_warning(plan)
    if warning is not None:
        _LOG.warning("%s", warning)
    # Cores must be there when an optimizer is built: its groups, its state and a checkpoint's are
    # over them. The first forward would tell the rows, and comes too late.
    assumed = assumed_rows(plan)
    if assumed is not None:
        _LOG.info("%s", assumed)
    shapes = {entry.key: "x".join(map(str, entry.spec.shape)) for entry in plan.entries}

    def tell(key: str, done: int, total: int) -> None:
        _LOG.info("factorising %s (%s), %d of %d", key, shapes[key], done + 1, total)
        if progress is not None:
            progress(key, done, total)

    return tell
