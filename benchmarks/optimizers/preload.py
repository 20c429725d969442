"""Imported once by the process that all workers are forked from."""

from __future__ import annotations

# First: it says with how many threads torch comes.
import bench.preload  # noqa: F401

import optimizers.journey  # noqa: F401
from optimizers import catalogue

for _name in catalogue.PACKAGES:
    if catalogue.version(_name):
        catalogue.module_of(_name)
