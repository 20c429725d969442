"""What tokens are drawn, against probabilities by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from opdf_compile.distill.generation import Sampling
from opdf_compile.errors import InputError

P = np.array([0.05, 0.4, 0.3, 0.15, 0.1])
DRAWS = 20_000


def frequencies(sampling: Sampling, p: np.ndarray = P) -> np.ndarray:
    logits = torch.tensor(np.log(p)).expand(DRAWS, -1)
    found = sampling.next_tokens(logits, torch.Generator().manual_seed(0))
    return torch.bincount(found, minlength=len(p)).numpy()


@pytest.mark.parametrize(
    ("sampling", "wanted"),
    [
        (Sampling(), P),
        (Sampling(temperature=0.5), P**2),
        (Sampling(temperature=2.0), P**0.5),
        # 0.4 and 0.3 reach 0.7 exactly, 0.4 alone does not.
        (Sampling(top_p=0.69), np.array([0, 0.4, 0.3, 0, 0])),
        (Sampling(top_p=0.39), np.array([0, 1.0, 0, 0, 0])),
        (Sampling(top_p=0.95), np.array([0, 0.4, 0.3, 0.15, 0.1])),
        (Sampling(top_p=0.5, temperature=0.5), np.array([0, 1.0, 0, 0, 0])),
        (Sampling(temperature=0.0), np.array([0, 1.0, 0, 0, 0])),
    ],
)
def test_tokens_have_the_probabilities_that_they_are_drawn_with(
    sampling: Sampling, wanted: np.ndarray
) -> None:
    found, share = frequencies(sampling), wanted / wanted.sum()
    assert (found[share == 0] == 0).all()
    if (share > 0).sum() > 1:
        assert chisquare(found[share > 0], DRAWS * share[share > 0]).pvalue > 1e-3


def test_the_check_of_frequencies_can_fail() -> None:
    assert chisquare(frequencies(Sampling(temperature=1.1)), DRAWS * P).pvalue < 1e-3


@pytest.mark.parametrize("wrong", [{"top_p": 0.0}, {"max_new_tokens": 0}, {"temperature": -1.0}])
def test_a_number_out_of_range_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match="Sampling got .* are usual"):
        Sampling(**wrong)  # type: ignore[arg-type]
