"""Mixtures of experts of transformers, in a form that ONNX has.

transformers runs the experts of a layer as one grouped product, an operator of its own without an
ONNX form. Its batched products compute the same numbers from operators that have one: they gather
the matrices of each token's experts.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from torch import nn

_GROUPED, _BATCHED = "grouped_mm", "batched_mm"
_LOG = logging.getLogger("opdf_compile")


@contextlib.contextmanager
def batched_experts(model: nn.Module) -> Iterator[None]:
    """Let grouped experts compute by batched products while the block runs.

    Args:
        model: Any module; one without such experts is left alone.
    """
    switch: Any = getattr(model, "set_experts_implementation", None)
    config: Any = getattr(model, "config", None)
    grouped = switch is not None and getattr(config, "_experts_implementation", None) == _GROUPED
    if not grouped or not any(type(m).__name__.endswith("Experts") for m in model.modules()):
        yield
        return
    _LOG.info("export: the experts are exported as batched products, grouped ones have no ONNX")
    switch(_BATCHED)
    try:
        yield
    finally:
        switch(_GROUPED)
