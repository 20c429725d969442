"""Start weights from a zoo: trained students of one architecture, and what each of them learned.

add_to_zoo("zoo", "threes", student, data)      # threes.safetensors, threes.json
start = zoo_start("sampled", "zoo", student, data, seed=0)
student.load_state_dict(start, strict=False)
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
