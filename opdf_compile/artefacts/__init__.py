"""What ships, as it is read again: ONNX files, their record and interface, check data, bundles."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
