"""The files of this folder import one another and the oracle of benchmarks/."""

import sys
from pathlib import Path

# pytest's importlib mode adds no path.
HERE = Path(__file__).parent
for _folder in (HERE, HERE.parents[1] / "benchmarks"):
    if str(_folder) not in sys.path:
        sys.path.insert(0, str(_folder))
