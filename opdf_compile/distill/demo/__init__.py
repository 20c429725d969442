"""The demo: the job of the recipe that `distill --init` writes, raced plain against chains."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
