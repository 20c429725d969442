"""What native code writes to stderr while it works: kept from the terminal, and read."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator

_STDERR = 2


@contextlib.contextmanager
def native_log() -> Iterator[Callable[[], str]]:
    """Take over the process's stderr; the function that it gives returns what was written so far.

    Some libraries tell the reason of a failure nowhere else.
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile() as log:
        kept = os.dup(_STDERR)
        os.dup2(log.fileno(), _STDERR)

        def written() -> str:
            return os.pread(log.fileno(), 1 << 16, 0).decode(errors="replace")

        try:
            yield written
        finally:
            sys.stderr.flush()
            os.dup2(kept, _STDERR)
            os.close(kept)
