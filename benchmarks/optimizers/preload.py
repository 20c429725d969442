"""Imported once by the process that all workers are forked from.

Nothing here starts a thread, which a fork would not survive.
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import torch  # noqa: E402

torch.set_num_threads(1)

import opdf_compile as opdf  # noqa: E402
import optimizers.journey  # noqa: E402, F401
from optimizers import catalogue  # noqa: E402

for _name in opdf.__all__:
    getattr(opdf, _name)
for _name in catalogue.PACKAGES:
    if catalogue.version(_name):
        catalogue.module_of(_name)
