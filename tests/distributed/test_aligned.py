"""alignment= with process_group=: each rank aligns the cores that it holds."""

from __future__ import annotations

from typing import Any

import pytest
import students


def test_a_shared_run_is_the_replicated_one(two: Any) -> None:
    runs = two.run("alignment_tasks", "against_replicated")
    for run in runs:
        assert run["shared"]["targets"] == run["shared"]["owned"]
        assert 0 < len(run["shared"]["owned"]) < len(run["replicated"]["owned"])
        assert students.distance(run["shared"]["weights"], run["replicated"]["weights"]) < 1e-9
        assert run["shared"]["last"] == pytest.approx(run["replicated"]["last"], rel=1e-9)
    assert students.same_bits(run["shared"]["weights"] for run in runs)


def test_a_shared_run_resumes_bit_by_bit(two: Any) -> None:
    for run in two.run("alignment_tasks", "resumed"):
        assert students.same_bits([run["first"], run["second"]])


def test_what_one_rank_cannot_decompose_stops_all(two: Any) -> None:
    for answer in two.run("alignment_tasks", "broken_on_one_rank"):
        assert "InputError" in answer and "teacher's weight 'head.weight' cannot be" in answer
