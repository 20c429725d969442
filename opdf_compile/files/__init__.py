"""Files that are written entirely or not at all, and arrays and JSON that nobody vouches for."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
