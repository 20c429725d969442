"""`python benchmarks/optimizers`: see command.py."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# A folder that is run has only itself on the path; workers look their modules up there too.
_BENCHMARKS = str(Path(__file__).resolve().parents[1])
sys.path[0] = _BENCHMARKS
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, (_BENCHMARKS, os.environ.get("PYTHONPATH")))
)

if __name__ == "__main__":
    from optimizers.command import main

    main()
