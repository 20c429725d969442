"""torch.export and torch.fx tools: trace, match, edit, count and dump. Knows no tensor network."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
