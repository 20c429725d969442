"""Distillation: data, losses and training loops that show what over-parameterisation gains.

Every name is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opdf_compile.distill.layer_map import (
        CopyReport,
        LayerMap,
        copy_layers,
        every_kth,
        found_map,
    )
    from opdf_compile.distill.losses import (
        CorrelationLoss,
        CosineLoss,
        HiddenStateLoss,
        HintonKD,
        Loss,
        Projection,
        ReverseSkewKL,
        SkewKL,
        TaskLoss,
        Term,
        WeightedSum,
    )

# Public name -> the module of this package that has it.
_HOME = {
    "CopyReport": "layer_map",
    "CorrelationLoss": "losses",
    "CosineLoss": "losses",
    "HiddenStateLoss": "losses",
    "HintonKD": "losses",
    "LayerMap": "layer_map",
    "Loss": "losses",
    "Projection": "losses",
    "ReverseSkewKL": "losses",
    "SkewKL": "losses",
    "TaskLoss": "losses",
    "Term": "losses",
    "WeightedSum": "losses",
    "copy_layers": "layer_map",
    "every_kth": "layer_map",
    "found_map": "layer_map",
}

__all__ = [
    "CopyReport",
    "CorrelationLoss",
    "CosineLoss",
    "HiddenStateLoss",
    "HintonKD",
    "LayerMap",
    "Loss",
    "Projection",
    "ReverseSkewKL",
    "SkewKL",
    "TaskLoss",
    "Term",
    "WeightedSum",
    "copy_layers",
    "every_kth",
    "found_map",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
