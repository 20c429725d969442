"""Import torchvision where its compiled operators cannot load.

torchvision's wheel brings an extension built for one build of torch; with another (a CPU-only
torch, for instance) importing torchvision fails with "operator torchvision::nms does not exist",
and so do timm and the vision models of transformers, which need none of its operators. Where, and
only where, that is so, the schemas of the missing operators are declared before the import. A model
that *calls* one still fails, and torchvision's own message names the mismatch and the remedy;
`opdf-compile doctor` finds it, too.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import sys

import torch

_LOG = logging.getLogger("opdf_compile")

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


@functools.cache
def prepare_torchvision() -> torch.library.Library | None:
    """Make `import torchvision` work, once per process, before timm or transformers need it.

    Returns:
        What holds the declared schemas (they vanish with it; the cache keeps it), or None where
        torchvision is not installed or imports by itself.
    """
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is None:
        return None
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        return _declare(error)
    return None


def _declare(error: RuntimeError) -> torch.library.Library:
    """Forget the import that failed half-way, declare what it missed, and import again."""
    for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for name, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(schema)  # type: ignore[no-untyped-call]
    importlib.import_module("torchvision")
    # A model that calls one of them is told so by torchvision; nobody else needs to know.
    _LOG.info(
        "torchvision is installed but its compiled operators do not fit torch %s (%s): going on "
        "without them",
        torch.__version__,
        error,
    )
    return library
