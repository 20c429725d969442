"""Suggestions: few slips, and a slip of case is hardly one."""

from __future__ import annotations

import difflib

import pytest
import torch

from opdf_compile.spelling import _slips, nearest

OPTIMIZERS = sorted(n for n, v in vars(torch.optim).items() if isinstance(v, type))


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("Adamw", "AdamW"),
        ("adam", "Adam"),
        ("sgd", "SGD"),
        ("AdmaW", "AdamW"),
        ("Adam W", "AdamW"),
        ("rmsprop", "RMSprop"),
        ("NAdm", "NAdam"),
    ],
)
def test_what_was_meant_is_found(written: str, meant: str) -> None:
    assert nearest(written, OPTIMIZERS) == [meant]


def test_the_usual_matcher_would_have_missed_it() -> None:
    assert difflib.get_close_matches("Adamw", OPTIMIZERS, n=1) == ["Adam"]


@pytest.mark.parametrize("written", ["", "Gradient", "layer", "X"])
def test_what_is_far_from_all_gets_no_suggestion(written: str) -> None:
    assert nearest(written, ["Adam", "AdamW", "SGD"]) == []


def test_several_come_in_order_and_any_is_taken_when_asked_for() -> None:
    known = ["resnet50", "resnet18", "resnet18d", "vit_tiny"]
    assert nearest("resnet-18", known, most=2) == ["resnet18", "resnet18d"]
    assert nearest("zzz", known, within=1) != []


@pytest.mark.parametrize(
    ("a", "b", "slips"),
    [
        ("", "abc", 3),
        ("abc", "abc", 0),
        ("abc", "acb", 1),  # swapped
        ("abc", "ab", 1),
        ("abc", "aBc", 0.1),
        ("cross-entropy", "cross_entropy", 0.1),
        ("kitten", "sitting", 3),
    ],
)
def test_slips_are_counted_the_same_from_both_sides(a: str, b: str, slips: float) -> None:
    assert _slips(a, b) == pytest.approx(slips)
    assert _slips(b, a) == pytest.approx(slips)
