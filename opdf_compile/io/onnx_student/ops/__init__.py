"""ONNX operators as torch code, one file per family; `enter_all` enters them into the table."""

import importlib

_FAMILIES = (
    *("activations", "arithmetic", "control", "convolution", "indexing", "norms"),
    *("pooling", "quantised", "recurrent", "reductions", "resize", "shapes", "symbolic"),
)


def enter_all() -> None:
    """Import every family, which enters its operators."""
    for family in _FAMILIES:
        importlib.import_module(f"{__name__}.{family}")
