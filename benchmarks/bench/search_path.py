"""Where the processes that a benchmark starts look for its modules."""

from __future__ import annotations

import os


def share(folder: str) -> None:
    """Let every Python process that is started from here find the modules of a folder."""
    known = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (folder, known)))
