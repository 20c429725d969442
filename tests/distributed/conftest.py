"""Two crews, each started by the first test that asks for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from crew import Crew


def _crew(size: int) -> Iterator[Crew]:
    crew = Crew(size)
    yield crew
    crew.stop()


@pytest.fixture(scope="session")
def two() -> Iterator[Crew]:
    yield from _crew(2)


@pytest.fixture(scope="session")
def four() -> Iterator[Crew]:
    yield from _crew(4)
