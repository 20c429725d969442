"""What a student writes: responses, the buffer that keeps them, and when it writes.

responses = respond(model, prompts, Sampling(64, top_p=0.9), end=2, seed=0)
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
