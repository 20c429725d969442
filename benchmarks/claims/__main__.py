"""`python benchmarks/claims`: see command.py."""

from __future__ import annotations

import sys
from pathlib import Path

# A folder that is run has only itself on the path.
sys.path[0] = str(Path(__file__).resolve().parents[1])

if __name__ == "__main__":
    from claims.command import main

    sys.exit(main())
