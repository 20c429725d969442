"""The table of models (`long_tail.py`) is read by more than one file of tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
