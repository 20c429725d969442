"""The crew must not let a hang or a failure of one rank pass."""

from __future__ import annotations

from typing import Any

import pytest


def test_ranks_answer_in_order(two: Any) -> None:
    assert two.run("crew_tasks", "sum_of_ranks") == [1.0, 1.0]


@pytest.mark.slow
def test_a_hang_fails_with_its_name_and_the_next_task_runs(two: Any) -> None:
    with pytest.raises(AssertionError, match=r"rank 0 of 2 in crew_tasks.one_waits: no answer"):
        two.run("crew_tasks", "one_waits", timeout=4.0)
    assert two.run("crew_tasks", "sum_of_ranks") == [1.0, 1.0]


@pytest.mark.slow
def test_a_rank_that_raises_fails_the_test(two: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # The other one waits for it in a collective; nothing is learned from waiting with it.
    monkeypatch.setitem(type(two).run.__globals__, "GRACE", 0.5)
    with pytest.raises(AssertionError, match=r"rank 1 of 2 [^\n]*\n(.*\n)*.*this rank only"):
        two.run("crew_tasks", "one_raises")
