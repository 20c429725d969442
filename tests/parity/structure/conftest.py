"""The graphs that are mutated, exported."""

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
from mutation_graphs import export


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Name of a graph of `mutation_graphs.py` -> its export, made once."""
    folder = tmp_path_factory.mktemp("graphs")
    return functools.cache(lambda name: export(name, folder / f"{name}.onnx"))
