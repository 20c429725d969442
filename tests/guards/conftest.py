"""Good files of every kind, from which the refused ones are made."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

_FOLDER = str(Path(__file__).parent)
if _FOLDER not in sys.path:
    sys.path.insert(0, _FOLDER)


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One unharmed file of each kind; nobody changes them."""
    from good_files import write_good_files

    folder = tmp_path_factory.mktemp("good")
    write_good_files(folder)
    return folder
