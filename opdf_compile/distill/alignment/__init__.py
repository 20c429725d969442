"""The tensor constraint loss: a student's auxiliary cores are drawn to its teacher's.

L_Aux = 1/n_aux  sum over auxiliary cores of MSE(student core, teacher core)

The central core is in no sum. The gauge is fixed once at the start (see `tensor.gauge`).
Source: arXiv 2411.06448, eq. 5.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
