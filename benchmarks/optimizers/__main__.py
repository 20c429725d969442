"""`python benchmarks/optimizers`: see command.py."""

from __future__ import annotations

import sys
from pathlib import Path

# A folder that is run has only itself on the path.
sys.path[0] = str(Path(__file__).resolve().parents[1])

if __name__ == "__main__":
    from bench.search_path import share

    from optimizers.command import main

    share(sys.path[0])
    main()
