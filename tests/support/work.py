"""Work counted in function calls (Python's and C's), which no machine changes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

# Twice the size makes at most twice the calls, and what is the same for all sizes makes the ratio
# smaller. With this bound a part that grows with the square is below a seventh of the work.
MOST = 2.3


def calls(act: Callable[[], Any]) -> int:
    """How many functions are called."""
    count = 0

    def see(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(see)
    try:
        act()
    finally:
        sys.setprofile(before)
    return count


def require_linear(work: Callable[[int], int], size: int) -> None:
    """Refuse work that grows faster than its size."""
    ratio = work(2 * size) / work(size)
    assert ratio <= MOST, f"twice the size makes {ratio:.2f} times the calls"
