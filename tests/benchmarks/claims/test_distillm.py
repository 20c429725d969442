"""The experiment of DistiLLM: its grammar, its two divergences, its figures."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from claims.systems import distillm_task as task
from claims.systems.distillm import ALPHA, Run, derivatives, speed_up
from torch import Tensor, nn


class Table(nn.Module):
    """A student that is a grammar itself."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table.log(), requires_grad=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """At the first place, which has no two tokens before it, the mean of all."""
        found = self.table[input_ids[:, :-1], input_ids[:, 1:]]
        return torch.cat([self.table.mean((0, 1)).expand(len(found), 1, -1), found], 1)


def test_the_grammar_is_one_and_another_seed_is_another() -> None:
    table = task.Grammar.drawn(0).table
    torch.testing.assert_close(table.sum(-1), torch.ones(task.TOKENS, task.TOKENS).double())
    assert (table > 0).all()
    assert not torch.equal(table, task.Grammar.drawn(1).table)


def test_sequences_end_where_they_should_and_repeat_by_their_seed() -> None:
    grammar = task.Grammar.drawn(0)
    rows = grammar.sequences(200, 3)
    assert rows == grammar.sequences(200, 3)
    for row in rows:
        response = row["response"]
        assert task.END not in [*row["prompt"], *response[:-1]]
        assert response[-1] == task.END or len(response) == task.LONGEST


def test_a_student_that_is_the_grammar_has_no_divergence() -> None:
    grammar = task.Grammar.drawn(0)
    assert grammar.divergences(Table(grammar.table), 0, 50) == pytest.approx((0, 0), abs=1e-9)


def test_the_divergences_are_those_of_whole_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all sequences of two tokens, enumerated, against the mean over drawn ones."""
    monkeypatch.setattr(task, "LONGEST", 2)
    grammar, other = task.Grammar.drawn(0), task.Grammar.drawn(1)
    even = torch.full_like(other.table, 1 / task.TOKENS)
    student = task.Grammar(0.5 * other.table + 0.5 * even)
    count = 20_000
    found = grammar.divergences(Table(student.table), 0, count)
    pairs = (grammar.table, student.table), (student.table, grammar.table)
    for value, (p, q) in zip(found, pairs, strict=True):
        wanted, square = 0.0, 0.0
        ids = range(1, task.TOKENS)
        for a, b, c in itertools.product(ids, ids, range(task.TOKENS)):
            first, rival = p[a, b, c], q[a, b, c]
            whole = float((first / rival).log())
            if c != task.END:
                whole += float((p[b, c] * (p[b, c] / q[b, c]).log()).sum())
            share = float(first) / len(ids) ** 2
            wanted, square = wanted + share * whole, square + share * whole**2
        # Five standard errors; the drawn sequences scatter less than whole ones would.
        assert value == pytest.approx(wanted, abs=5 * math.sqrt(square / count))
        assert wanted > 0.5


def test_skew_bounds_the_derivative_by_a_probability_and_nothing_else_does() -> None:
    ours = torch.tensor([[40.0, 0.0, 0.0]], dtype=torch.float64)
    theirs = torch.tensor([[0.0, 40.0, 0.0]], dtype=torch.float64)
    plain, skewed = (derivatives(ours, theirs, alpha) for alpha in (0.0, ALPHA))
    assert plain[0] == pytest.approx(math.exp(40), rel=1e-6)
    assert skewed[0] == pytest.approx((1 - ALPHA) / ALPHA, rel=1e-6)
    assert plain[1] == pytest.approx(math.sqrt(2), rel=1e-6)


def test_the_speed_up_is_to_what_the_worse_one_ends_with() -> None:
    slow = Run(0.0, [(4.0, 3.0), (8.0, 1.0), (12.0, 0.5)], 9, 0.0)
    fast = Run(0.0, [(1.0, 2.0), (2.0, 0.9), (3.0, 0.8)], 9, 0.0)
    assert speed_up(slow, fast) == pytest.approx(12.0 / 3.0)
    assert speed_up(fast, slow) == pytest.approx(3.0 / 12.0)
