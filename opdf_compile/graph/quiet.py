"""Keeps off the terminal what torch's exporters say about themselves while we use them.

What matters of it becomes our own sentence: a rung that failed, an example that is rejected, an
operation without an ONNX form. The rest is for those who mend torch or this package; it is heard
when the logger ``opdf_compile`` is at DEBUG (``--debug``).
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

_LOG = logging.getLogger("opdf_compile")

_LIBRARIES = ("torch", "onnx", "onnx_ir", "onnxscript")
_NOTHING = logging.CRITICAL + 1


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silences the loggers of torch and of the ONNX libraries, and warnings, within the block.

    Loggers below these inherit the level, also those made within the block. One that was given a
    level of its own (by TORCH_LOGS, say) keeps it: somebody asked to hear it.
    """
    if _LOG.isEnabledFor(logging.DEBUG):
        yield
        return
    loggers = [logging.getLogger(name) for name in _LIBRARIES]
    levels = [library.level for library in loggers]
    try:
        for library, level in zip(loggers, levels, strict=True):
            if level in (logging.NOTSET, logging.WARNING):
                library.setLevel(_NOTHING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for library, level in zip(loggers, levels, strict=True):
            library.setLevel(level)
