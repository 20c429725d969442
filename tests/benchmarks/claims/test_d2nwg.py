"""The experiment of D2NWG: what the zoo has not seen it has not seen; labels are numbered anew."""

from __future__ import annotations

import torch
from claims.systems.d2nwg import CLASSES, accuracy, digits, network, subsets, train

from opdf_compile.distill.recipe import load_digits


def test_no_choice_is_both_known_and_new() -> None:
    known, apart = subsets(300, 24)
    assert len(known) == 300 and len(apart) == 24
    assert not {frozenset(one) for one in known} & {frozenset(one) for one in apart}
    assert all(len(set(one)) == CLASSES for one in (*known, *apart))


def test_label_k_is_the_kth_digit() -> None:
    """Counts of each label are those of its digit."""
    part = load_digits()["train"]
    counts = torch.bincount(torch.stack([part[row]["labels"] for row in range(len(part))]))
    found = digits((7, 1, 9, 0, 3))
    assert torch.bincount(found.train[1]).tolist() == [int(counts[d]) for d in (7, 1, 9, 0, 3)]


def test_all_start_alike_and_learn() -> None:
    first, second = network(), network()
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )
    data = digits((0, 1, 2, 3, 4))
    before = accuracy(first, data)
    train(first, data, 60, 0)
    assert accuracy(first, data) > before + 40
