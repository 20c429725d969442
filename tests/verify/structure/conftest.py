"""The files of this folder import one another; pytest's importlib mode adds no path for that."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
