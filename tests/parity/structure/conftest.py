"""The files of this folder import one another; pytest's importlib mode adds no path for that."""

import functools
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Name of a graph of `mutation_graphs.py` -> its export, made once."""
    from mutation_graphs import export

    folder = tmp_path_factory.mktemp("graphs")
    return functools.cache(lambda name: export(name, folder / f"{name}.onnx"))
