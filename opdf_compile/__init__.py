"""opdf-compile: over-parameterise a student while it trains, fold it back, prove it is the same.

    import opdf_compile as opdf

    traced = opdf.trace(student, (x,))
    plan = opdf.plan(traced, cores=3)
    training = opdf.expand(traced, plan)     # train it
    student = opdf.fold(training)            # the class you came with, plain weights
    opdf.export_onnx(student, (x,), "out/", reference=untouched)
    assert opdf.verify("out/")

or, with over-parameterisation as a property of the optimizer:

    opt = opdf.Overparam(student, torch.optim.AdamW, lr=2e-5, cores=3)   # train as always

Every name is imported when it is first used, so that importing this package costs little more than
importing torch.
"""

from __future__ import annotations

import importlib
from typing import Any

import lazy_loader

from opdf_compile.version import __version__ as __version__

_lazily, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["parametrizations"]


def __getattr__(name: str) -> Any:
    """A public name, imported now; ``parametrizations`` is a package that can be called."""
    if name == "parametrizations":
        return importlib.import_module("opdf_compile.parametrizations")
    return _lazily(name)
