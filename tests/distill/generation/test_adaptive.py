"""DistiLLM's scheduler and buffer, against traces by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from opdf_compile.distill.generation import AdaptivePolicy, ReplayBuffer

# Validation losses, and phi and the reference after each: the reference moves only when phi does.
TRACE = [
    (2.00, 0.0, 2.00),
    (1.50, 0.0, 2.00),
    (2.09, 0.0, 2.00),
    (2.10, 0.1, 2.10),
    (2.15, 0.1, 2.10),
    (2.25, 0.2, 2.25),
    (1.90, 0.2, 2.25),
    (2.36, 0.3, 2.36),
]


def test_phi_rises_by_the_trace() -> None:
    policy = AdaptivePolicy()
    for loss, phi, reference in TRACE:
        policy.validated(loss)
        assert policy.phi == pytest.approx(phi)
        assert policy.reference == reference


def test_phi_stays_below_one() -> None:
    policy = AdaptivePolicy(rise=0.4)
    for loss in range(9):
        policy.validated(float(loss))
    assert policy.phi == 1.0


@pytest.mark.parametrize(
    ("u", "step", "full", "wanted"),
    [
        # phi = 0.6, T = 10: the bound on writing is 0.6 (1 - t/10).
        (0.53, 1, True, "student"),
        (0.55, 1, True, "buffer"),
        (0.55, 1, False, "student"),
        (0.61, 1, False, "data"),
        (0.29, 5, True, "student"),
        (0.31, 5, True, "buffer"),
        (0.01, 10, True, "buffer"),
        (0.01, 10, False, "student"),
        (0.99, 10, True, "data"),
    ],
)
def test_where_a_batch_comes_from(u: float, step: int, full: bool, wanted: str) -> None:
    assert AdaptivePolicy(phi=0.6).choose(u, step, 10, full=full) == wanted


def test_nothing_is_written_before_phi_rises() -> None:
    assert AdaptivePolicy().choose(0.0, 1, 10, full=False) == "data"


def pair(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.full((number % 3 + 1,), number), torch.full((number % 4 + 1,), -number)


def test_the_oldest_go_first_and_a_sample_has_none_twice() -> None:
    buffer = ReplayBuffer(5)
    buffer.push(pair(number) for number in range(4))
    assert not buffer.full
    buffer.push(pair(number) for number in range(4, 8))
    assert buffer.full
    drawn = buffer.sample(5, np.random.default_rng(0))
    assert sorted(int(prompt[0]) for prompt, _ in drawn) == [3, 4, 5, 6, 7]
    assert len(buffer.sample(9, np.random.default_rng(0))) == 5
    assert len(buffer.sample(2, np.random.default_rng(0))) == 2


def test_a_buffer_comes_back_from_its_tensors() -> None:
    buffer, other = ReplayBuffer(5), ReplayBuffer(5)
    assert buffer.tensors() == {}
    buffer.push(pair(number) for number in range(7))
    other.push([pair(99)])
    other.load(buffer.tensors())
    draws = [b.sample(5, np.random.default_rng(3)) for b in (buffer, other)]
    for ours, theirs in zip(*draws, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    other.load({})
    assert len(other) == 0
