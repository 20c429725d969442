"""The NVIDIA driver as a shared library: it is asked whether there is a GPU, and for its memory."""

from __future__ import annotations

import ctypes
import os
from typing import Any

DRIVER = "nvcuda.dll" if os.name == "nt" else "libcuda.so.1"


def load_library(name: str) -> Any:
    """A shared library by name, or None."""
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None
