"""Two forms of one program: inline (`Expanded`) and hoisted (`WeightProgram`, `Overparam`)."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
