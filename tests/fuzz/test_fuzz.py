"""Random modules with random plans: seven properties, each against an oracle of its own.

``make test`` runs two fixed cases. ``make test-all`` runs 2,000 in batches. A batch has a number,
its seed (pytest -v prints it), and a failure prints the module as code. To run one batch again, or
others:

    OPDF_FUZZ_SEED=1007 python -m pytest tests/fuzz -k batches     one batch of 100 cases
    OPDF_FUZZ_CASES=5000 OPDF_FUZZ_SEED=50000 python -m pytest tests/fuzz -k batches
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from fuzz_cases import Case, cases
from fuzz_properties import check
from hypothesis import given, seed, settings

BATCH = 100
FIRST = int(os.environ.get("OPDF_FUZZ_SEED", "1000"))
# A seed alone is one batch: that of the failure to see again.
ASKED = os.environ.get("OPDF_FUZZ_CASES", str(BATCH) if "OPDF_FUZZ_SEED" in os.environ else "2000")
SEEDS = range(FIRST, FIRST + -(-int(ASKED) // BATCH))
# Writing and reading a file takes longer than all the rest of a case.
FILE_EVERY = 10

pytestmark = pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")


@settings(max_examples=2)
@given(case=cases())
def test_random_modules(case: Case) -> None:
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize("number", SEEDS)
def test_batches_of_random_modules(number: int) -> None:
    done = 0

    @seed(number)
    @settings(max_examples=BATCH, derandomize=False, database=None, print_blob=False)
    @given(case=cases())
    def batch(case: Case) -> None:
        nonlocal done
        done += 1
        if done % FILE_EVERY:
            check(case)
            return
        with tempfile.TemporaryDirectory() as folder:
            check(case, Path(folder))

    try:
        batch()
    except Exception as error:
        error.add_note(
            f"to see it again: OPDF_FUZZ_SEED={number} python -m pytest tests/fuzz -k batches"
        )
        raise
    assert done >= BATCH
