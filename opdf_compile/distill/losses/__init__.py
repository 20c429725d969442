"""What a student is trained on: small modules, and a weighted sum of them that reports its parts.

loss = WeightedSum({"soft": (0.9, HintonKD(4.0)), "hard": (0.1, TaskLoss())})
loss(student(x), teacher(x), {"labels": y}).backward()
loss.parts                                      # {"soft": ..., "hard": ...}, before the weights

Every loss takes `(student, teacher, *, mask=None)`, classes or features on the last axis, and works
in float32 or wider whatever autocast does. No gradient flows into what the teacher gave. Each has
`pieces`, a sum and a count, from which several processes make one exact mean.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
