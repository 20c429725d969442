"""The zoo's own modules, importable as `python benchmarks/zoo` and its workers see them."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
for _folder in (HERE, HERE.parents[1] / "benchmarks"):
    if str(_folder) not in sys.path:
        sys.path.insert(0, str(_folder))
