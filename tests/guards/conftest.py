"""Good files of every kind, from which the refused ones are made."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from good_files import write_good_files
from snapshots import snapshot


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One unharmed file of each kind; nobody changes them."""
    folder = tmp_path_factory.mktemp("good")
    write_good_files(folder)
    before = snapshot(folder)
    yield folder
    assert snapshot(folder) == before
