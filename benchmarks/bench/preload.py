"""The first import of the process that workers are forked from: torch with one thread, and opdf.

Nothing here starts a thread, which a fork would not survive.
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import torch  # noqa: E402

torch.set_num_threads(1)

import opdf_compile as opdf  # noqa: E402

# Names of the package are imported when they are asked for.
for _name in opdf.__all__:
    getattr(opdf, _name)
