"""Good files of every kind, from which the refused ones are made."""

from __future__ import annotations

from pathlib import Path

import pytest
from good_files import write_good_files


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One unharmed file of each kind; nobody changes them."""
    folder = tmp_path_factory.mktemp("good")
    write_good_files(folder)
    return folder
