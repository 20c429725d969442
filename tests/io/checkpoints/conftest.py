"""One process forks the runs of all files, so that torch is imported once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from checkpoint_runs import Server


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()
