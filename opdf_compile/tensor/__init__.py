"""Tensor algebra of matrix product operators: torch in, torch out; knows no graph and no file."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
