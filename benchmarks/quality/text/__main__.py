"""`python benchmarks/quality/text`: see command.py."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# A folder that is run has only itself on the path; the processes of the pool look there too.
_BENCHMARKS = str(Path(__file__).resolve().parents[2])
sys.path[0] = _BENCHMARKS
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, (_BENCHMARKS, os.environ.get("PYTHONPATH")))
)

if __name__ == "__main__":
    from quality.text.command import main

    main()
