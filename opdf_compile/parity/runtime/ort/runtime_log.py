"""The runtime's own log, silenced while its failures become our sentences."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

FATAL_ONLY = 4
_WARNINGS_AND_WORSE = 2


@contextlib.contextmanager
def quiet_runtime() -> Iterator[None]:
    """Silence the runtime's process-wide logger.

    It writes to stderr what callers cannot use: a provider that does not load, and for each
    convolution the algorithms that cuDNN cannot use.
    """
    import onnxruntime as ort

    ort.set_default_logger_severity(FATAL_ONLY)
    try:
        yield
    finally:
        ort.set_default_logger_severity(_WARNINGS_AND_WORSE)
