"""The names of dtypes in files and sentences."""

from __future__ import annotations

import torch


def dtype_name(dtype: torch.dtype) -> str:
    """A dtype as numpy, files and people call it: ``float32``."""
    return str(dtype).removeprefix("torch.")
