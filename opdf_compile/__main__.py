"""`python -m opdf_compile` is the program `opdf-compile`."""

from __future__ import annotations

import sys

from opdf_compile.cli import main

if __name__ == "__main__":
    sys.exit(main())
